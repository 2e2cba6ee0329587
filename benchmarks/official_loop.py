"""Times plans against the loops of the official code: same weights, schedule and noise.

    python -m benchmarks.official_loop --shapes mar_b --every 32 --json official.json
    python -m benchmarks.official_loop --shapes mar_b --at 32 --rounds 5 --batch-size 8
    python -m benchmarks.official_loop --shapes harmon_0_5b --every 32 --rounds 3
    python -m benchmarks.official_loop --shapes flowar_s --engine openvino:fp32,openvino
    python -m benchmarks.official_loop --shapes mar_b --plan mar_b.plan --refresh 9:5 --every 32

The original way runs in fp32 and under bf16 autocast, in MAR each as it is and through
torch.compile. Each AR iteration of MAR and Harmon that is measured is run by every contender in
turn, so that the ratios hold on a machine that is not quiet. With --every N only each Nth
iteration and the last are run, from random tokens, whose values make no difference to the time;
the whole image is then the sum over all iterations, with backbone calls and denoising steps in
between interpolated. --at measures some iterations only and says nothing about the image. A race
with --json that was interrupted goes on where it stopped. FlowAR and xAR draw whole images in
turn. The VAE is the same for all and left out.
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
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families import flowar, harmon, xar
from disa.exporter.families.configs.mar import MARConfig, configure
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
from .official.remembering import Remembering
from .official.tables import summary
from .records import CLOCKS, Clock


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
@click.option(
    "--engine",
    "engines",
    default="cpu",
    show_default=True,
    help="cpu, openvino; several: cpu,openvino:fp32,openvino. :fp32 keeps an fp32 plan to it.",
)
@click.option("--compiled/--no-compiled", default=True, show_default=True, help="torch.compile.")
@click.option(
    "--refresh", help="Plans with a cached backbone also with these full passes: 9:5, or a list."
)
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
@click.option("--at", help="AR iterations to measure instead, from 0: 32, or 0,32,63.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(
    shapes: str | None,
    checkpoint: Path | None,
    plans: tuple[Path, ...],
    engines: str,
    compiled: bool,
    refresh: str | None,
    batch_size: int,
    iterations: int | None,
    steps: str | None,
    strategy: str | None,
    threads: int | None,
    clock: str,
    every: int,
    at: str | None,
    rounds: int,
    output: Path | None,
) -> None:
    """Time plans against the loops of the official code."""
    if output:
        check_writable(output)
    state: Mapping[str, torch.Tensor]
    if shapes:
        shapes = official_name(shapes)
        config, plans = official_config(shapes), plans or (random_plan(shapes),)
        state = random_state(config)
    elif checkpoint and plans:
        opened = open_checkpoint(checkpoint)
        config, state = configure(opened.state, None, opened.args), dict(opened.state)
    else:
        raise click.UsageError("give --shapes, or --checkpoint and --plan")
    torch.set_num_threads(threads or physical_cores())
    ticks = CLOCKS[clock]
    pipes = open_plans(plans, engines.split(","), threads)
    if refresh:
        check_refresh(pipes, clock)
    pipe = next(iter(pipes.values()))
    options = pipe.options(num_iterations=iterations, steps=steps, strategy=strategy)
    command = command_line()
    # The clock of the processor changes, so the rates stand before and behind what they bound.
    before = matrix_rates(threads, ticks)
    if isinstance(options, MaskedOptions):
        contenders, count, channels = masked(config, state, compiled, ticks, options)
        conditions: Sequence[Any] = class_labels(batch_size)
        if isinstance(config, harmon.Config):
            conditions = [PROMPT] * batch_size
        contenders += [
            Plans(name, each, options, conditions, ticks) for name, each in pipes.items()
        ]
        contenders += [
            Remembering(name, each, options, conditions, refresh)
            for name, each in pipes.items()
            if refresh and remembers(each)
        ]
        question = {
            "contenders": [contender.name for contender in contenders],
            "command": command,
            "processor": processor_name(),
            "versions": {**describe_versions(), "torch": torch.__version__},
        }
        progress = Progress(output, question)
        chosen = chosen_iterations(options.num_iterations, every, at)
        record = race(contenders, options, count, channels, batch_size, chosen, rounds, progress)
    else:
        if clock != "wall" or at is not None or every > 1:
            raise InvalidRequest(
                "whole images of this family are timed by the wall clock: leave out --clock, --at "
                "and --every"
            )
        progress = Progress(None, {})
        images = [PlanImage(name, each) for name, each in pipes.items()]
        record = race_images(flow_officials(config, state), images, options, batch_size, rounds)
    after = matrix_rates(threads, ticks)
    record["clock"], record["threads"] = clock, torch.get_num_threads()
    record["shapes"] = shapes or pipe.plan.manifest.name
    record["command"] = command
    work = count_work(pipe.plan, options, 1, "fp32")
    if work is not None:
        record["flops_an_image"] = work.flops
    record["rates"] = {precision: max(before[precision], after[precision]) for precision in before}
    if output:
        write_record(record, output)
    progress.finish()
    click.echo(summary(record))


def remembers(pipe: Pipeline) -> bool:
    """Whether a plan has a cached backbone."""
    return bool(pipe.plan.manifest.with_role(Role.REUSE))


def check_refresh(pipes: Mapping[str, Pipeline], clock: str) -> None:
    """Refuse --refresh where it would have no effect, or no meaning.

    Raises:
        InvalidRequest: no plan has a cached backbone, or the clock is another one than that of the
            pipeline, which times the parts of an AR iteration.
    """
    if not any(map(remembers, pipes.values())):
        raise InvalidRequest(
            "--refresh: no plan has a cached backbone: make one with "
            "python -m benchmarks.random_plan mar_b --cached-backbone -o mar_b.plan"
        )
    if clock != "wall":
        raise InvalidRequest(f"--refresh is timed by the wall clock: leave out --clock {clock}")


def official_name(shapes: str) -> str:
    """The name of an official size; its point may be written as in a file's name."""
    return shapes.replace("_0_5b", "_0.5b").replace("_1_5b", "_1.5b")


def masked(
    config: Any,
    state: Mapping[str, torch.Tensor],
    compiled: bool,
    clock: Clock,
    options: MaskedOptions,
) -> tuple[list[Contender], int, int]:
    """The official contenders of MAR or Harmon, and the tokens of an image and their channels."""
    if not isinstance(config, harmon.Config):
        return [*officials(config, state, compiled, clock)], config.tokens, config.channels
    assert isinstance(options, HarmonOptions)
    half = config.mar
    sides = parse_size(options.size, half.vae_stride * half.patch_size)
    model = OfficialHarmon(harmon.build(state, config, "random weights"), *sides).eval()
    ways: list[Contender] = [
        Official(name, model, dtype, clock)
        for name, dtype in ((FP32, None), (BF16, torch.bfloat16))
    ]
    return ways, sides[0] * sides[1], half.channels


def flow_officials(config: Any, state: Mapping[str, torch.Tensor]) -> list[OfficialImage]:
    """FlowAR or xAR in fp32 and in bf16."""
    loop: FlowARLoop | XARLoop
    if isinstance(config, flowar.Config):
        loop = FlowARLoop(flowar.build(state, config))
    else:
        loop = XARLoop(xar.build(state, config))
    return [OfficialImage(FP32, loop), OfficialImage(BF16, loop, torch.bfloat16)]


def officials(
    config: MARConfig, state: Mapping[str, torch.Tensor], compiled: bool, clock: Clock
) -> list[Official]:
    """MAR in fp32 and in bf16, and both through torch.compile."""
    models = {"": OfficialMAR(config)}
    if compiled:
        models[COMPILED] = OfficialMAR(config)
        models[COMPILED].compile_parts()
    for model in models.values():
        model.load_state_dict(state, assign=True)
        model.eval()
    return [
        Official(name + suffix, model, dtype, clock)
        for suffix, model in models.items()
        for name, dtype in ((FP32, None), (BF16, torch.bfloat16))
    ]


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


def chosen_iterations(count: int, every: int, at: str | None) -> list[int]:
    """The AR iterations to measure, in rising order."""
    if at is None:
        return sorted({*range(0, count, every), count - 1})
    try:
        chosen = sorted({int(index) for index in at.split(",")})
    except ValueError:
        raise InvalidRequest(f"--at {at}: give whole numbers, such as 0,32,63") from None
    if not 0 <= chosen[0] <= chosen[-1] < count:
        raise InvalidRequest(f"--at {at}: the AR iterations are 0 to {count - 1}")
    return chosen


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
        flag = max(option.opts, key=len)
        if isinstance(value, bool):
            words.append(flag if value else option.secondary_opts[0])
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            shown = Path(entry).name if name == "plans" else str(entry)
            words += [flag, shlex.quote(shown)]
    return " ".join(words)


if __name__ == "__main__":
    main()
