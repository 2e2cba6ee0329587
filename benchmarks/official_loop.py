"""Times a plan against the original way of computing MAR: same weights, schedule and noise.

    python -m benchmarks.official_loop --shapes mar_b --every 8 --json official.json

Each AR iteration that is measured is run by every contender in turn, so that the ratios hold on
a machine that is not quiet. With --every N only each Nth iteration and the last are run, from
random tokens, whose values make no difference to the time; the whole image is then the sum over
all iterations, with backbone calls and denoising steps in between interpolated. The VAE is the
same for all and left out.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from disa.cli import DisaCommand, progress_bar
from disa.engines.cpu import physical_cores
from disa.exporter.checkpoint import open_checkpoint
from disa.exporter.mar_config import configure, official_config
from disa.exporter.random_weights import random_plan, random_state
from disa.runtime.bench_report import check_writable, figure, table, write_record
from disa.runtime.bench_work import count_work
from disa.runtime.masked import prediction_counts
from disa.runtime.noise import PhiloxNoise
from disa.runtime.pipeline import Pipeline
from disa.runtime.settings import Settings

from .contenders import Contender, Lap, Official, Plans, State
from .official_model import OfficialMAR
from .rates import matrix_rates
from .records import moment, new_record
from .timing import CLOCKS

FP32, BF16 = "official fp32", "official bf16 autocast"


@click.command(cls=DisaCommand)
@click.option("--shapes", help="An official size with random weights, such as mar_b.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights, with --plan.")
@click.option(
    "--plan",
    "plans",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Their plan, and others of the same weights; an fp32 one is made if none is given.",
)
@click.option("--engine", default="cpu", show_default=True, help="cpu, openvino; several: cpu,...")
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--iterations", type=click.IntRange(1))
@click.option("--steps")
@click.option("--strategy")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    show_default=True,
    help="What is counted; cpu with --threads 1 on a machine that others use too.",
)
@click.option("--every", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(
    shapes: str | None,
    checkpoint: Path | None,
    plans: tuple[Path, ...],
    engine: str,
    batch_size: int,
    iterations: int | None,
    steps: str | None,
    strategy: str | None,
    threads: int | None,
    clock: str,
    every: int,
    output: Path | None,
) -> None:
    """Time a plan against the original way of computing MAR."""
    if output:
        check_writable(output)
    if shapes:
        config, state = official_config(shapes), random_state(official_config(shapes))
        plans = plans or (random_plan(shapes),)
    elif checkpoint and plans:
        opened = open_checkpoint(checkpoint)
        config, state = configure(opened.state, None, opened.args), dict(opened.state)
    else:
        raise click.UsageError("give --shapes, or --checkpoint and --plan")
    torch.set_num_threads(threads or physical_cores())
    ticks = CLOCKS[clock]
    model = OfficialMAR(config)
    model.load_state_dict(state)
    model.eval()
    contenders: list[Contender] = [
        Official(FP32, model, clock=ticks),
        Official(BF16, model, torch.bfloat16, ticks),
    ]
    pipe = None
    for plan, name in product(plans, engine.split(",")):
        pipe = Pipeline.from_plan(plan, name, threads=threads)
        precision = pipe.plan.manifest.precision
        label = f"disa {name}" + ("" if precision == "fp32" else f" {precision}")
        contenders.append(Plans(label, pipe.sessions, config.class_num, ticks))
    assert pipe is not None
    settings = pipe.settings(iterations=iterations, steps=steps, strategy=strategy)
    assert isinstance(settings, Settings)
    # The clock of the processor changes, so the rates stand before and behind what they bound.
    before = matrix_rates(threads, ticks)
    record = race(contenders, settings, config.tokens, config.channels, batch_size, every)
    after = matrix_rates(threads, ticks)
    record["clock"], record["threads"] = clock, torch.get_num_threads()
    record["shapes"] = shapes or pipe.plan.manifest.name
    work = count_work(pipe.plan, settings, 1, "fp32")
    assert work is not None
    record["flops_an_image"] = work.flops
    record["rates"] = {precision: max(before[precision], after[precision]) for precision in before}
    if output:
        write_record(record, output)
    click.echo(summary(record))


def race(
    contenders: Sequence[Contender],
    settings: Settings,
    tokens: int,
    channels: int,
    batch: int,
    every: int,
) -> dict[str, Any]:
    """Time every contender on the same iterations, and say what an image takes, as JSON."""
    record, start = new_record("official_loop"), time.perf_counter()
    measured = sorted({*range(0, settings.iterations, every), settings.iterations - 1})
    laps: dict[str, list[Lap]] = {contender.name: [] for contender in contenders}
    differences = {contender.name: 0.0 for contender in contenders}
    noise = PhiloxNoise(0, range(batch))
    known = np.random.default_rng(0).standard_normal((tokens, batch, channels), np.float32)
    with progress_bar(len(measured) + 1, "racing", "iteration") as advance:
        for turn, index in enumerate([measured[-1], *measured]):
            state = state_of(settings, index, known, noise, tokens)
            round_of = {contender.name: contender.run(state) for contender in contenders}
            advance(1)
            if turn == 0:
                continue  # A warm-up.
            first = round_of[contenders[0].name].sampled
            for name, lap in round_of.items():
                laps[name].append(lap)
                difference = float(np.abs(lap.sampled - first).max() / np.abs(first).max())
                differences[name] = max(differences[name], difference)
            done = len(state.tokens)
            known[done : done + state.count] = first.reshape(state.count, batch, channels)
    steps = [len(settings.table(index)) for index in range(settings.iterations)]
    results = {
        name: {**whole(measured, taken, steps, batch), "difference": differences[name]}
        for name, taken in laps.items()
    }
    record["machine"]["load_after"] = moment()["load"]
    return record | {
        "batch_size": batch,
        "iterations": settings.iterations,
        "schedule": str(settings.schedule),
        "guided": settings.guided,
        "every": every,
        "measured": measured,
        "contenders": results,
        "seconds": time.perf_counter() - start,
    }


def state_of(
    settings: Settings, index: int, known: np.ndarray, noise: PhiloxNoise, tokens: int
) -> State:
    """The state that AR iteration `index` starts from, given all tokens so far."""
    counts = prediction_counts(tokens, settings.iterations)
    visible, count = sum(counts[:index]), counts[index]
    table, batch = settings.table(index), known.shape[1]
    draws = noise.gaussian(index, 1 + len(table), (count, batch, known.shape[2]))
    return State(
        index=index,
        tokens=known[:visible],
        positions=noise.order(tokens),
        count=count,
        labels=np.arange(batch, dtype=np.int64) % 2,
        table=table,
        scale=settings.guidance(min(visible + count, tokens - 1), tokens),
        guided=settings.guided,
        noise=draws.reshape(1 + len(table), count * batch, known.shape[2]),
    )


def whole(
    measured: Sequence[int], laps: Sequence[Lap], steps: Sequence[int], batch: int
) -> dict[str, Any]:
    """Seconds an image from the measured iterations; those in between are interpolated.

    steps: denoising steps of every iteration.
    """
    every = np.arange(len(steps))
    backbone = np.array([lap.backbone_seconds for lap in laps])
    step = np.array(
        [lap.head_seconds / steps[index] for index, lap in zip(measured, laps, strict=True)]
    )
    in_backbone = float(np.interp(every, measured, backbone).sum()) / batch
    in_head = float((np.interp(every, measured, step) * steps).sum()) / batch
    return {
        "seconds_an_image": in_backbone + in_head,
        "backbone_seconds_an_image": in_backbone,
        "head_seconds_an_image": in_head,
        "backbone_seconds_a_call": backbone.tolist(),
        "head_seconds_a_step": step.tolist(),
    }


HEADINGS = (
    *("contender", "s/image", "backbone", "head", "ms/backbone call", "ms/head step"),
    *("against fp32", "against bf16", "difference"),
)


def race_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a record's contenders under HEADINGS; calls and steps are medians."""
    results = record["contenders"]
    baseline, autocast = (results[name]["seconds_an_image"] for name in (FP32, BF16))
    return [
        [
            name,
            figure(result["seconds_an_image"]),
            figure(result["backbone_seconds_an_image"]),
            figure(result["head_seconds_an_image"]),
            figure(1000 * float(np.median(result["backbone_seconds_a_call"]))),
            figure(1000 * float(np.median(result["head_seconds_a_step"]))),
            f"{baseline / result['seconds_an_image']:.2f}x",
            f"{autocast / result['seconds_an_image']:.2f}x",
            f"{result['difference']:.1e}",
        ]
        for name, result in results.items()
    ]


FLOOR_HEADINGS = ("precision", "GFLOP/s", "s/image at least", "against fp32", "against bf16")


def floor_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells under FLOOR_HEADINGS: what an image takes at least, and the factors at most.

    That is the time of the operations that a guided image cannot do without, at the rate of a
    large matrix product on the same machine.
    """
    results = record["contenders"]
    baseline, autocast = (results[name]["seconds_an_image"] for name in (FP32, BF16))
    rows = []
    for precision, rate in record["rates"].items():
        least = record["flops_an_image"] / rate
        factors = (f"{seconds / least:.2f}x" for seconds in (baseline, autocast))
        rows.append([precision, figure(rate / 1e9), figure(least), *factors])
    return rows


def summary(record: Mapping[str, Any]) -> str:
    """A record for people."""
    machine = record["machine"]
    return "\n".join(
        [
            f"{record['shapes']}, batch {record['batch_size']}, {record['iterations']} iterations, "
            f"{record['schedule']}: {len(record['measured'])} iterations measured",
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load']} before and "
            f"{machine['load_after']} after, {record['threads']} threads, {record['clock']} time",
            table(HEADINGS, race_rows(record)),
            "",
            table(FLOOR_HEADINGS, floor_rows(record)),
        ]
    )


if __name__ == "__main__":
    main()
