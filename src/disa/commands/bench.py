"""disa-bench: measures the cost of generating images with a plan."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..bench.measure import measure
from ..bench.report import check_writable, compare, read_record, summary, write_record
from ..bench.variant import (
    MAX_BATCH,
    Variant,
    parse_engines,
    parse_numbers,
    parse_step_counts,
    variants,
)
from ..errors import DisaError
from ..files import is_same
from ..optional import import_failed
from ..progress import progress_bar
from .options.groups import ENGINE, OUTPUT, GroupedCommand
from .options.sampling import HOW, flags_of, sampling_options_without

MAX_ITERATIONS = 1_000_000
GROUPS = {
    "What to measure": ("shapes", "random_weights", "batch_size"),
    HOW: ("steps", "num_iterations"),
    ENGINE: ("engine", "threads", "repeat", "warmup"),
    OUTPUT: ("output", "old"),
}


@click.command(
    cls=GroupedCommand,
    groups=GROUPS,
    epilog="Examples:\n\n\b\n"
    "  disa-bench engines/mar_b.plan\n"
    "  disa-bench engines/mar_b.plan --batch-size 1,8 --steps 50:5,100:100 --json new.json\n"
    "  disa-bench engines/mar_b.plan --engine cpu,openvino --compare old.json\n"
    "  disa-bench --shapes mar_b --random-weights --repeat 1 --warmup 0",
)
@click.argument("plan", type=click.Path(path_type=Path), required=False)
@click.option(
    "--shapes", help="Measure a model of an official size, such as mar_b, instead of PLAN."
)
@click.option(
    "--random-weights",
    is_flag=True,
    help="Give the model of --shapes random weights; the speed is the same.",
)
@click.option(
    "--batch-size",
    default="1",
    show_default=True,
    metavar="N,...",
    help="Images generated together, such as 1,8.",
)
@click.option(
    "--steps",
    metavar="UPPER:LOWER,...",
    help="Denoising steps of the first and of the last AR iteration, such as 50:5,100:100.",
)
@click.option(
    *flags_of("num_iterations"),
    "num_iterations",
    metavar="N,...",
    help="AR iterations of an image, such as 64,256 (MAR, Harmon).",
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar="NAME,...",
    help="Engines of the graphs, such as cpu,openvino.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "--repeat",
    type=click.IntRange(1, 10_000),
    default=5,
    show_default=True,
    help="Measured batches of each variant.",
)
@click.option(
    "--warmup",
    type=click.IntRange(0, 1000),
    default=1,
    show_default=True,
    help="Batches of each variant before the measured ones.",
)
@click.option(
    "--json", "output", type=click.Path(path_type=Path), help="Write the record to this file."
)
@click.option(
    "--compare",
    "old",
    type=click.Path(path_type=Path),
    help="Compare with this earlier record of --json.",
)
@sampling_options_without("steps", "schedule", "num_iterations")
def main(
    plan: Path | None,
    shapes: str | None,
    random_weights: bool,
    batch_size: str,
    steps: str | None,
    num_iterations: str | None,
    engine: str,
    threads: int | None,
    repeat: int,
    warmup: int,
    output: Path | None,
    old: Path | None,
    **sampling: Any,
) -> None:
    """Measure the time, calls and memory to generate images with PLAN on this machine.

    Comma-separated values are measured in all combinations, in alternation, so that their ratios
    are valid even on a busy machine. Other options come from the plan.

    The column floor is a lower bound: the time of the matmuls at the rate of a large one, or the
    time to read the weights, whichever is longer. The column near is the floor as a share of the
    measured time.
    """
    chosen = choose_variants(engine, batch_size, steps, num_iterations, sampling)
    before = read_record(old) if old else None
    if output:
        if plan and is_same(output, plan):
            raise click.UsageError(f"{output} is measured: give another file for --json")
        check_writable(output)
    path = choose_plan(plan, shapes, random_weights)
    with progress_bar(len(chosen) * (repeat + warmup), "measuring", "batch") as advance:
        record = measure(
            path, chosen, repeat=repeat, warmup=warmup, threads=threads, advance=advance
        )
    if output:
        write_record(record, output)
    click.echo(summary(record))
    if before:
        click.echo("\n" + compare(before, json.loads(json.dumps(record))))


def choose_variants(
    engine: str, batch_size: str, steps: str | None, iterations: str | None, sampling: Any
) -> Sequence[Variant]:
    """The variants that the options select.

    Raises:
        DisaError: a value is not valid.
    """
    return variants(
        parse_engines(engine),
        parse_numbers(batch_size, "batch size", MAX_BATCH),
        parse_step_counts(steps) or [None],
        parse_numbers(iterations, "number of iterations", MAX_ITERATIONS) or [None],
        sampling,
    )


def choose_plan(plan: Path | None, shapes: str | None, random_weights: bool) -> Path:
    """The plan to measure; with --shapes, a plan with random weights is made.

    Raises:
        DisaError: the options do not go together.
    """
    if plan is not None:
        if shapes or random_weights:
            raise DisaError("a plan has its own shapes and weights: leave out --shapes")
        return plan
    if shapes is None:
        raise DisaError(
            "there is nothing to measure: give a plan, or --shapes mar_b --random-weights"
        )
    if not random_weights:
        raise DisaError(f"--shapes {shapes} has no weights: add --random-weights")
    try:
        from ..exporter.random_weights import random_plan
    except ImportError as error:
        raise import_failed(error, error.name or "torch", "export") from error
    return random_plan(shapes, report=lambda stage: click.echo(f"  {stage}", err=True))


if __name__ == "__main__":
    main()
