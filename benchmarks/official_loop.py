"""Times plans against the loops of the official code: same weights, schedule and noise.

    python -m benchmarks.official_loop --shapes mar_b --every 32 --json official.json
    python -m benchmarks.official_loop --shapes harmon_0_5b --every 32 --rounds 3
    python -m benchmarks.official_loop --shapes flowar_s --engine openvino:fp32,openvino
    python -m benchmarks.official_loop --shapes mar_b --plan mar_b.plan --refresh 9:5 --every 32

The original way runs in fp32 and under bf16 autocast, in MAR each as it is and through
torch.compile. Each AR iteration of MAR and Harmon that is measured is run by every contender in
turn, so that the ratios hold on a machine that is not quiet. With --every N only each Nth
iteration and the last are run, from random tokens, whose values make no difference to the time;
the whole image is then the sum over all iterations, with backbone calls and denoising steps in
between interpolated. A race with --json that was interrupted goes on where it stopped. FlowAR and
xAR generate whole images in turn. The VAE is the same for all and left out.
"""

import shlex
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource

from disa.bench.machine import describe_versions, processor_name
from disa.bench.report import check_writable, write_record
from disa.bench.work import count_work
from disa.commands.command import DisaCommand
from disa.engines.cpu import physical_cores
from disa.engines.plan.traits import Role
from disa.errors import InvalidRequest
from disa.exporter.families import flowar, harmon, xar
from disa.exporter.random_weights import official_config, random_plan, random_state
from disa.runtime.families.masked.harmon import HarmonOptions, parse_size
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline

from .official.contenders import (
    BF16,
    COMPILED,
    FP32,
    Contender,
    Official,
    Plans,
    class_labels,
    session_of,
)
from .official.flow import FlowARLoop, OfficialImage, PlanImage, XARLoop, race_images
from .official.harmon import PROMPT, OfficialHarmon
from .official.mar import OfficialMAR
from .official.race import Progress, race
from .official.rates import matrix_rates
from .official.tables import summary


@click.command(cls=DisaCommand)
@click.option("--shapes", required=True, help="An official size, such as mar_b; random weights.")
@click.option(
    "--plan",
    "plans",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Plans of the same weights (benchmarks.random_plan); an fp32 one by default.",
)
@click.option(
    "--engine",
    "engines",
    default="cpu",
    show_default=True,
    help="cpu, openvino; several: cpu,openvino:fp32,openvino. :fp32 keeps an fp32 plan to it.",
)
@click.option("--compiled/--no-compiled", default=True, show_default=True, help="torch.compile.")
@click.option(
    "--bf16/--no-bf16",
    default=True,
    show_default=True,
    help="The official loop in bf16 autocast, which takes hours on a processor without bf16.",
)
@click.option(
    "--refresh", help="Plans with a cached backbone also with these full passes: 9:5, or a list."
)
@click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True)
@click.option("--iterations", type=click.IntRange(1))
@click.option("--steps")
@click.option("--strategy")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(
    shapes: str,
    plans: tuple[Path, ...],
    engines: str,
    compiled: bool,
    bf16: bool,
    refresh: str | None,
    batch_size: int,
    iterations: int | None,
    steps: str | None,
    strategy: str | None,
    threads: int | None,
    every: int,
    rounds: int,
    output: Path | None,
) -> None:
    """Time plans against the loops of the official code."""
    if output:
        check_writable(output)
    shapes = official_name(shapes)
    config = official_config(shapes)
    state = random_state(config)
    torch.set_num_threads(threads or physical_cores())
    pipes = open_plans(plans or (random_plan(shapes),), engines.split(","), threads)
    if refresh and not any(map(has_cached_backbone, pipes.values())):
        raise InvalidRequest(
            "--refresh: no plan has a cached backbone: make one with "
            "python -m benchmarks.random_plan mar_b --cached-backbone -o mar_b.plan"
        )
    pipe = next(iter(pipes.values()))
    options = pipe.options(num_iterations=iterations, steps=steps, strategy=strategy)
    command = command_line()
    progress: Progress | None = None
    # The clock of the processor changes, so the rates stand before and behind what they bound.
    before = matrix_rates(threads)
    if isinstance(options, MaskedOptions):
        contenders, count, channels = masked_officials(config, state, compiled, bf16, options)
        harmonic = isinstance(config, harmon.Config)
        conditions = [PROMPT] * batch_size if harmonic else class_labels(batch_size)
        contenders += [
            Plans(name, each, options, conditions, full_passes)
            for full_passes in dict.fromkeys((None, refresh))
            for name, each in pipes.items()
            if full_passes is None or has_cached_backbone(each)
        ]
        question = {
            "contenders": [contender.name for contender in contenders],
            "command": command,
            "processor": processor_name(),
            "versions": {**describe_versions(), "torch": torch.__version__},
        }
        progress = Progress(output, question)
        chosen = sorted({*range(0, options.num_iterations, every), options.num_iterations - 1})
        record = race(contenders, options, count, channels, batch_size, chosen, rounds, progress)
    elif every > 1:
        raise InvalidRequest("this family is timed in whole images: leave out --every")
    else:
        images = [PlanImage(name, each) for name, each in pipes.items()]
        officials = flow_officials(config, state, bf16)
        record = race_images(officials, images, options, batch_size, rounds)
    after = matrix_rates(threads)
    record |= {"threads": torch.get_num_threads(), "shapes": shapes, "command": command}
    work = count_work(pipe.plan, options, 1, "fp32")
    if work is not None:
        record["flops_an_image"] = work.flops
    record["rates"] = {precision: max(before[precision], after[precision]) for precision in before}
    if output:
        write_record(record, output)
    if progress:
        progress.finish()
    click.echo(summary(record))


def has_cached_backbone(pipe: Pipeline) -> bool:
    """Whether a plan has a cached backbone."""
    return bool(pipe.plan.manifest.with_role(Role.REUSE))


def official_name(shapes: str) -> str:
    """The name of an official size; its point may be written as in a file's name."""
    return shapes.replace("_0_5b", "_0.5b").replace("_1_5b", "_1.5b")


def masked_officials(
    config: Any,
    state: Mapping[str, torch.Tensor],
    compiled: bool,
    bf16: bool,
    options: MaskedOptions,
) -> tuple[list[Contender], int, int]:
    """MAR or Harmon in fp32 and, if wanted, in bf16, and both of MAR through torch.compile.

    Returns:
        The contenders, the tokens of an image, and their channels.
    """
    if isinstance(config, harmon.Config):
        assert isinstance(options, HarmonOptions)
        half = config.mar
        sides = parse_size(options.size, half.vae_stride * half.patch_size)
        built = harmon.build(state, config, "random weights")
        models: dict[str, OfficialMAR] = {"": OfficialHarmon(built, *sides)}
        tokens, channels = sides[0] * sides[1], half.channels
    else:
        models = {"": OfficialMAR(config)}
        if compiled:
            models[COMPILED] = OfficialMAR(config)
            models[COMPILED].compile_parts()
        for model in models.values():
            model.load_state_dict(state, assign=True)
        tokens, channels = config.tokens, config.channels
    ways = [
        Official(name + suffix, model.eval(), dtype)
        for suffix, model in models.items()
        for name, dtype in ((FP32, None), (BF16, torch.bfloat16))
        if bf16 or dtype is None
    ]
    return [*ways], tokens, channels


def flow_officials(
    config: Any, state: Mapping[str, torch.Tensor], bf16: bool
) -> list[OfficialImage]:
    """FlowAR or xAR in fp32 and, if wanted, in bf16."""
    loop: FlowARLoop | XARLoop
    if isinstance(config, flowar.Config):
        loop = FlowARLoop(flowar.build(state, config))
    else:
        loop = XARLoop(xar.build(state, config))
    narrow = [OfficialImage(BF16, loop, torch.bfloat16)] if bf16 else []
    return [OfficialImage(FP32, loop), *narrow]


def open_plans(
    plans: Sequence[Path], engines: Sequence[str], threads: int | None
) -> dict[str, Pipeline]:
    """Every plan on every engine, by a name that says what runs."""
    pipes = {}
    for plan, entry in product(plans, engines):
        engine, _, exact = entry.partition(":")
        if exact not in ("", "fp32"):
            raise InvalidRequest(f"--engine {entry}: give {engine} or {engine}:fp32")
        pipe = Pipeline.from_plan(plan, engine, threads=threads, exact=bool(exact))
        if exact and pipe.plan.manifest.precision != "fp32":
            continue
        precision = session_of(pipe, Role.ITERATION).description.partition(",")[0].split()[-1]
        pipes[f"disa {engine}" + ("" if precision == "fp32" else f" {precision}")] = pipe
    return pipes


def command_line() -> str:
    """The command that is running, without where its record goes."""
    context = click.get_current_context()
    words = ["python -m benchmarks.official_loop"]
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if name not in context.params or not given or name == "output":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append(option.opts[0] if value else option.secondary_opts[0])
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            words += [
                option.opts[0],
                shlex.quote(Path(entry).name if name == "plans" else str(entry)),
            ]
    return " ".join(words)


if __name__ == "__main__":
    main()
