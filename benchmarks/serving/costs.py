"""Measures the cost model of a MAR plan on this machine, for `simulate --costs`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np

from disa.commands.command import DisaCommand
from disa.engines.open import ENGINES
from disa.errors import InvalidRequest
from disa.files import written_whole
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats

from .simulation import CostModel, IterationPlan

GUIDED = 2
"""Rows of the backbone and of the head for an image, or a token, with guidance."""


@click.command(cls=DisaCommand)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option("--iterations", type=click.IntRange(1), default=16, show_default=True)
@click.option("--max-images", type=click.IntRange(2), default=16, show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("costs.json"))
def costs(
    plan: Path,
    engine: str,
    threads: int | None,
    iterations: int,
    max_images: int,
    repeat: int,
    output: Path,
) -> None:
    """Measure the calls of the MAR model in PLAN, and write their cost model."""
    with Pipeline.from_plan(plan, engine, threads=threads, exact=engine == "auto") as pipe:
        sizes = [1 << power for power in range(max_images.bit_length())]
        fitted = fit(
            shape_of(pipe, iterations), sizes, [run(pipe, iterations, n, repeat) for n in sizes]
        )
        click.echo(f"{pipe.engine}: {json.dumps(asdict(fitted))}")
    with written_whole(output) as file:
        file.write((json.dumps(asdict(fitted), indent=1) + "\n").encode())


def shape_of(pipe: Pipeline, iterations: int) -> CostModel:
    """A cost model with the sizes of a plan.

    Raises:
        InvalidRequest: it is not a plan of MAR, or has fewer tokens than iterations.
    """
    manifest = pipe.plan.manifest
    if manifest.family != "mar":
        raise InvalidRequest(
            f"{pipe.plan.path} is a model of {manifest.family}: the cost model is that of MAR"
        )
    upper, lower = map(int, str(manifest.defaults["steps"]).split(":"))
    options = pipe.family.options({"num_iterations": iterations})
    return CostModel(
        tokens=manifest.tokens["count"],
        buffer=manifest.model["buffer_size"],
        iterations=options.num_iterations,
        upper=upper,
        lower=lower,
    )


def run(pipe: Pipeline, iterations: int, images: int, repeat: int) -> Stats:
    """The least times of a batch of guided images in several runs, after one that warms up."""
    runs = [
        pipe(
            [0] * images,
            guidance_scale=2.0,
            num_iterations=iterations,
            strategy="linear",
            batch_size=images,
            seed=seed,
        ).stats
        for seed in range(repeat + 1)
    ]
    least = {part: min(one.seconds[part] for one in runs[1:]) for part in runs[0].seconds}
    return replace(runs[0], seconds=least)


def fit(shape: CostModel, images: Sequence[int], runs: Sequence[Stats]) -> CostModel:
    """Fit launches and times of rows to batches of several sizes, by relative least squares."""
    counts = IterationPlan.of(shape, shape.iterations).counts
    known = np.cumsum([0, *counts[:-1]])
    tokens = GUIDED * ((2 * shape.buffer + known + shape.tokens) / 2).sum()
    backbone = _line([(shape.iterations, n * tokens) for n in images], _seconds(runs, "backbone"))
    head = _line([(r.head_calls, GUIDED * r.head_rows) for r in runs], _seconds(runs, "head"))
    decoder = _line([(1, n) for n in images], _seconds(runs, "decoder"))
    return replace(
        shape,
        backbone_launch=backbone[0],
        backbone_token=backbone[1],
        head_launch=head[0],
        head_row=head[1],
        decoder_launch=decoder[0],
        decoder_image=decoder[1],
    )


def _seconds(runs: Sequence[Stats], part: str) -> list[float]:
    return [run.seconds[part] for run in runs]


def _line(work: Sequence[tuple[float, float]], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of a call and of a row, neither negative.

    Args:
        work: number of calls and of rows in each measurement.
    """
    matrix = np.array(work) / np.array(seconds)[:, None]
    call, row = np.linalg.lstsq(matrix, np.ones(len(seconds)), rcond=None)[0]
    if call < 0 or row < 0:
        # The constraint that is violated is met exactly.
        column = matrix[:, int(row > call)]
        alone = column.sum() / (column @ column)
        call, row = (0.0, alone) if row > call else (alone, 0.0)
    return float(call), float(row)
