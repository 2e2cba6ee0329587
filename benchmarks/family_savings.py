"""Measures computations of FlowAR, xAR and Harmon that are hoisted out of a loop.

    python -m benchmarks.family_savings -o benchmarks/results/family_savings.json

It compares the CPU time of computing them once with that of computing them in every turn of the
loop, for one guided image in PyTorch with one thread.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import torch

from disa.bench.report import check_writable, figure
from disa.commands.command import DisaCommand
from disa.exporter.families import flowar, harmon, xar
from disa.exporter.families.configs.flow import HEAD_DIM
from disa.exporter.layers.diffusion_head import head_step as diffusion_step
from disa.exporter.layers.flow_head import ConditionKeys, TimestepTables, head_step
from disa.exporter.random_weights import official_config, random_state
from disa.tables import table

from .records import CLOCKS, Record, choose, least, moment, read_entries, write_entries

KIND = "family_savings"
TRIES = 3
FLOWAR_STEPS = 14
"""Calls of FlowAR-L's head in its last scale, with a nominal step count of 15."""
XAR_STEPS = 26
"""Denoising steps of xAR's third cluster of four."""
PREDICTED, HARMON_STEPS, ITERATIONS, PROMPT_TOKENS = 18, 27, 64, 25
"""Tokens and steps of Harmon's 32nd AR iteration at 512x512, and tokens of a usual prompt."""
HEADINGS = (
    *("model", "computed once", "for", "ms if computed each time", "ms once"),
    *("ms of one in the loop", "share of the loop saved"),
)


@dataclass(frozen=True)
class Hoisted:
    """A computation that is done once instead of in every turn of a loop.

    Attributes:
        what: name of the computation.
        loop: name of the loop.
        turns: number of turns of the loop.
        each: computes it for one turn.
        once: computes it for all turns.
        turn: the rest of a turn; None if it is not measured.
    """

    what: str
    loop: str
    turns: int
    each: Callable[[], object]
    once: Callable[[], object]
    turn: Callable[[], object] | None


@click.command(cls=DisaCommand)
@click.option("--only", help="Models, such as xar_b; all by default.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record.")
def main(only: str | None, output: Path | None) -> None:
    """Measure what is computed once outside a loop, and what it would cost inside."""
    chosen = choose(only, list(MODELS))
    entries: dict[str, Record] = {}
    if output:
        check_writable(output)
        entries = read_entries(output, KIND)
    torch.set_num_threads(1)
    for model in chosen:
        entries[model] = moment()
        with torch.no_grad():
            found = [timed(hoisted) for hoisted in MODELS[model](official_config(model))]
        entries[model]["hoisted"] = found
        click.echo(table(HEADINGS, hoisted_rows({model: entries[model]})))
        if output:
            write_entries(output, KIND, entries, list(MODELS))


def timed(hoisted: Hoisted) -> Record:
    """The milliseconds of CPU time of a hoisted computation, as JSON."""
    return {
        "what": hoisted.what,
        "loop": hoisted.loop,
        "turns": hoisted.turns,
        "each": milliseconds(hoisted.each),
        "once": milliseconds(hoisted.once),
        "turn": milliseconds(hoisted.turn) if hoisted.turn else None,
    }


@cache
def milliseconds(work: Callable[[], object]) -> float:
    """The least CPU time of several runs; cached, because several entries share a turn."""
    return 1000 * least(work, CLOCKS["cpu"], TRIES)


def flowar_hoisted(config: flowar.Config) -> Iterator[Hoisted]:
    """The last and largest scale of a FlowAR model with cross-attention."""
    head = flowar.build(random_state(config), config).flownet
    tokens, width, steps = config.grid**2, config.diffloss_w, FLOWAR_STEPS
    z, x = torch.randn(2, tokens, config.width), torch.randn(tokens, 1, config.vae_embed_dim)
    positions = torch.arange(tokens) + config.positions - tokens
    rotary = flowar.scale_rotary(config, HEAD_DIM)
    tables, keys = TimestepTables(head), ConditionKeys(head)
    step = head_step(head, rotary)
    grid = torch.linspace(1000, 20, steps).round()
    embedding, modulation = tables(grid)
    kept = keys(z, rotary[:, positions]).unflatten(1, (2, 1)).transpose(0, 1)
    condition = head.cond_embed(z).unsqueeze(1)
    index, factors = torch.zeros(1, dtype=torch.int64), torch.ones(steps, 2)

    def denoise() -> object:
        scale = torch.full((1,), 2.0)
        return step(x, condition, kept, positions, index, embedding, modulation, factors, scale)

    loop = f"{steps} steps of the last scale"
    assert condition.shape == (2, 1, tokens, width)
    yield Hoisted(
        "keys and values of cross-attention",
        loop,
        steps,
        lambda: keys(z, rotary[:, positions]),
        lambda: keys(z, rotary[:, positions]),
        denoise,
    )
    yield Hoisted(
        "condition embedding",
        loop,
        steps,
        lambda: head.cond_embed(z),
        lambda: head.cond_embed(z),
        denoise,
    )
    yield Hoisted(
        "timestep embedding and the modulations that follow from it",
        loop,
        steps,
        lambda: tables(grid[:1].expand(2)),
        lambda: tables(grid),
        denoise,
    )


def xar_hoisted(config: xar.Config) -> Iterator[Hoisted]:
    """The third cluster of an xAR model, after two finished clusters."""
    model = xar.build(random_state(config), config)
    timestep, prefill, head = (
        xar.TimestepModulation(model),
        xar.Prefill(model),
        xar.head_step(model),
    )
    steps, channels, tokens = XAR_STEPS, config.vae_embed_dim, config.cluster_tokens
    past = 2 * tokens
    heads, channels_of_head = config.encoder_num_heads, config.width // config.encoder_num_heads
    x, finished = torch.randn(tokens, 1, channels), torch.randn(past, 1, channels)
    both = torch.tensor([207, config.class_num])
    times = torch.linspace(1000, 40, steps).round()
    modulation = timestep(times[:1].expand(2), both).unsqueeze(1)
    places = torch.arange(past + tokens)

    def cache(finished: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (2, 1, heads, finished, channels_of_head)
        depths = (config.encoder_depth, config.decoder_depth)
        encoder, decoder = (torch.randn(2 * depth, *shape) for depth in depths)
        return encoder, decoder

    none, one, two = cache(0), cache(tokens), cache(past)

    def denoise() -> object:
        index, scale = torch.zeros(1, dtype=torch.int64), torch.full((1,), 2.0)
        inputs = (index, torch.ones(steps, 3), scale, x)
        return head(x, places[past:], modulation, *two, *inputs)

    loop = f"{steps} steps of the third cluster"
    yield Hoisted(
        "modulations by class and time",
        loop,
        steps,
        lambda: timestep(times[:1].expand(2), both),
        lambda: timestep(times.repeat_interleave(2), both.repeat(steps)),
        denoise,
    )
    yield Hoisted(
        "keys and values of the finished clusters",
        loop,
        steps,
        lambda: prefill(finished, places[:past], modulation, *none),
        lambda: prefill(finished[tokens:], places[tokens:past], modulation, *one),
        denoise,
    )


def harmon_hoisted(config: harmon.Config) -> Iterator[Hoisted]:
    """An AR iteration in the middle of an image."""
    model = harmon.build(random_state(config), config, "random weights")
    head, half, steps = model.mar.head, config.mar, HARMON_STEPS
    rows = 2 * PREDICTED
    z, times = torch.randn(rows, half.decoder_embed_dim), torch.linspace(0, 950, steps)
    step, x = diffusion_step(head), torch.randn(PREDICTED, half.channels)
    condition = head.cond_embed(z).unflatten(0, (2, PREDICTED))
    embedding = head.time_embed(times)

    def denoise() -> object:
        index, scale = torch.zeros(PREDICTED, dtype=torch.int64), torch.full((PREDICTED,), 3.0)
        return step(x, condition, index, embedding, torch.ones(steps, 5), scale, x)

    yield Hoisted(
        "condition and timestep embeddings",
        f"{steps} steps of {PREDICTED} tokens",
        steps,
        lambda: (head.cond_embed(z), head.time_embed(times[:1].expand(rows))),
        lambda: (head.cond_embed(z), head.time_embed(times)),
        denoise,
    )
    words = torch.arange(2 * PROMPT_TOKENS).unflatten(0, (2, PROMPT_TOKENS))
    yield Hoisted(
        "the language model's pass over the prompt",
        f"{ITERATIONS} AR iterations",
        ITERATIONS,
        lambda: model.language_model.prompt(words),
        lambda: model.language_model.prompt(words),
        None,
    )


MODELS: Mapping[str, Callable[[Any], Iterator[Hoisted]]] = {
    "flowar_l": flowar_hoisted,
    "xar_b": xar_hoisted,
    "harmon_0.5b": harmon_hoisted,
}


def hoisted_rows(entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The cells of entries under HEADINGS."""
    return [
        [
            model,
            found["what"],
            found["loop"],
            figure(found["turns"] * found["each"]),
            figure(found["once"]),
            figure(found["turn"]),
            _share(found),
        ]
        for model, entry in entries.items()
        for found in entry["hoisted"]
    ]


def _share(found: Mapping[str, Any]) -> str:
    """The share of the loop's time that hoisting saves."""
    if found["turn"] is None:
        return "-"
    inside = found["turns"] * (found["turn"] + found["each"])
    return f"{(found['turns'] * found['each'] - found['once']) / inside:.1%}"


if __name__ == "__main__":
    main()
