"""Measures quality and time of every approximation on the demo's MAR.

`python -m demo.approximations` writes demo/results/approximations.json, and
`python -m demo.approximations_page` a page with a table and a plot of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from disa.bench.machine import describe_machine
from disa.calibration.quantization.options import QuantizeOptions
from disa.calibration.quantization.qdq import Format
from disa.calibration.quantization.quantize import quantize
from disa.commands.command import DisaCommand
from disa.errors import DisaError
from disa.exporter.export import export
from disa.files import written_whole
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats

from .classifier import load as load_classifier
from .data import fashion_mnist
from .observe import EXPORTS, WEIGHTS
from .quality import quality, real_quality, spread_classes

RESULTS = Path(__file__).with_name("results") / "approximations.json"
REFRESH = "4:4"


@dataclass(frozen=True)
class Variant:
    """A way to generate the same images.

    Attributes:
        name: name in the table.
        plan: precision of the plan.
        engine: engine of the graphs.
        options: options of the pipeline, in addition to those of all variants.
        exact: whether all matmuls are computed in fp32.
    """

    name: str
    plan: str = "fp32"
    engine: str = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False


def variants(schedule: Path | None) -> list[Variant]:
    """The variants to compare.

    Args:
        schedule: a file of `disa-calibrate --fit iterations`; without it, no variant uses one.
    """
    refresh = {"refresh": REFRESH}
    fitted = {"schedule": str(schedule)}
    compared = [
        Variant("exact, 50 steps", options={"steps": "50:50", "strategy": "constant"}, exact=True),
        Variant("exact", exact=True),
        Variant("exact, OpenVINO", engine="openvino", exact=True),
        Variant("bf16", engine="openvino"),
        Variant("int8", plan="int8"),
        Variant("int8, rest bf16", plan="int8", engine="openvino"),
        Variant(f"refresh {REFRESH}", options=refresh, exact=True),
        Variant(f"bf16, refresh {REFRESH}", engine="openvino", options=refresh),
    ]
    if schedule is not None:
        compared += [
            Variant("fitted iterations", options=fitted, exact=True),
            Variant("all together", plan="int8", engine="openvino", options=refresh | fitted),
        ]
    return compared


def recorded_options(variant: Variant) -> dict[str, Any]:
    """The options of a variant, with the name of a schedule's file instead of its path."""
    return {
        name: Path(value).name if name == "schedule" else value
        for name, value in variant.options.items()
    }


def make_plans(folder: Path) -> dict[str, Path]:
    """Make the plans of all variants, each with a cached backbone; returns them by precision."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = {name: folder / f"{name}.plan" for name in ("fp32", "int8")}
    if not plans["fp32"].exists():
        weights, vae = WEIGHTS / "fashion_mar.pth", WEIGHTS / "fashion_vae.ckpt"
        export(weights, plans["fp32"], vae=vae, cached_backbone=True, **EXPORTS["mar"])
    if not plans["int8"].exists():
        quantize(plans["fp32"], plans["int8"], QuantizeOptions(Format.INT8))
    return plans


@dataclass
class Outcome:
    """The images of a variant, in batches [n, 32, 32], and their cost."""

    stats: Stats = field(default_factory=Stats)
    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)


def generate(
    pipelines: Sequence[Pipeline],
    compared: Sequence[Variant],
    labels: npt.NDArray[np.int64],
    batch_size: int,
) -> list[Outcome]:
    """Generate the images of all variants, in alternation batch by batch.

    Args:
        pipelines: one for each variant.
        labels: the classes, [n].
    """
    outcomes = [Outcome() for _ in compared]
    for start in tqdm(range(0, len(labels), batch_size), unit="batch", disable=None):
        batch = [int(label) for label in labels[start : start + batch_size]]
        # Another variant is first in each batch, so that none always runs on a cold cache.
        turn = start // batch_size % len(compared)
        for index in [*range(turn, len(compared)), *range(turn)]:
            options = {"batch_size": batch_size, "seed": 0, **compared[index].options}
            result = pipelines[index](class_labels=batch, first_image=start, **options)
            if result.images is None:
                raise DisaError(f"{pipelines[index].plan.path} has no decoder to pixels")
            outcomes[index].images.append(result.images[..., 0])
            outcomes[index].stats.add(result.stats)
    return outcomes


def rows_of(
    compared: Sequence[Variant],
    pipelines: Sequence[Pipeline],
    outcomes: Sequence[Outcome],
    labels: npt.NDArray[np.int64],
    data: Path,
) -> list[dict[str, Any]]:
    """Quality and cost of every variant."""
    classifier = load_classifier()
    moments, _ = real_quality(classifier, 10, data)
    rows = []
    for variant, pipe, outcome in zip(compared, pipelines, outcomes, strict=True):
        score = quality(classifier, moments, np.concatenate(outcome.images), labels)
        seconds = outcome.stats.seconds
        rows.append(
            {
                "name": variant.name,
                "engine": pipe.engine,
                "options": recorded_options(variant),
                "seconds": seconds["total"],
                "backbone_seconds": seconds["backbone"],
                "head_seconds": seconds["head"],
                "head_rows_per_image": outcome.stats.head_rows / outcome.stats.images,
                "accuracy": score.accuracy,
                "frechet_distance": score.distance,
            }
        )
    return rows


@click.command(cls=DisaCommand)
@click.option("--num", type=click.IntRange(2), default=5000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True)
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads.")
@click.option(
    "--schedule",
    type=click.Path(path_type=Path, exists=True),
    help="A file of `disa-calibrate --fit iterations`.",
)
@click.option("--data", type=click.Path(path_type=Path), default=fashion_mnist.FOLDER)
@click.option("--work", type=click.Path(path_type=Path), default=Path("outputs/approximations"))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS)
def main(
    num: int,
    batch_size: int,
    threads: int,
    schedule: Path | None,
    data: Path,
    work: Path,
    output: Path,
) -> None:
    """Compare approximations on the same classes and seeds, in alternation batch by batch."""
    plans, compared = make_plans(work), variants(schedule)
    pipelines = [
        Pipeline.from_plan(plans[v.plan], v.engine, threads=threads, exact=v.exact)
        for v in compared
    ]
    # The first call of a session allocates memory, and shows early which options are not valid.
    generate(pipelines, compared, spread_classes(2), 2)
    labels = spread_classes(num)
    outcomes = generate(pipelines, compared, labels, batch_size)
    content = {
        "machine": describe_machine(),
        "num": num,
        "batch_size": batch_size,
        "threads": threads,
        "rows": rows_of(compared, pipelines, outcomes, labels, data),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(output) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    click.echo(f"written: {output}")


if __name__ == "__main__":
    main()
