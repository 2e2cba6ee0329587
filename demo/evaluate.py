"""Fixed steps against DiSA on plans of the demo model: `python -m demo.evaluate PLAN...`.

All schedules draw the same images (classes, seed, generation orders, first noise) and take
turns batch by batch, so that a machine that is slower for a while is slower for all.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tqdm import tqdm

from disa.cli import DisaCommand
from disa.errors import DisaError
from disa.runtime.bench_machine import describe_machine
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats

from . import fashion_mnist
from .classifier import Classifier, judge
from .classifier import load as load_classifier
from .frechet import Moments, frechet_distance

# Fixed steps are `constant` here, which starts at timestep 950 as DiSA does: `fixed` starts at 999,
# where so small a model's error is multiplied by thousands and only noise comes out.
SCHEDULES = ("constant 50", "linear 50:5", "constant 27", "constant 5")
PICTURE_COLUMNS = 20
ENLARGEMENT = 2
NAME_WIDTH = 120


@dataclass
class Entry:
    """A way to draw and what came of it."""

    plan: Path
    schedule: str
    stats: Stats = field(default_factory=Stats)
    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    @property
    def options(self) -> dict[str, Any]:
        """The schedule as options of a pipeline."""
        match self.schedule.split():
            case ["fitted", path]:
                return {"schedule": path}
            case ["adaptive", steps, tolerance]:
                return {"strategy": "adaptive", "steps": steps, "tolerance": float(tolerance)}
            case [strategy, steps]:
                return {"strategy": strategy, "steps": steps}
        raise DisaError(
            f"a schedule is a strategy and its steps, such as 'linear 50:5', 'fitted FILE' or "
            f"'adaptive 50:5 0.02', not {self.schedule!r}"
        )


def draw(
    pipelines: dict[Path, Pipeline],
    entries: Sequence[Entry],
    labels: npt.NDArray[np.int64],
    batch_size: int,
    options: dict[str, Any],
) -> None:
    """Fill the entries, each with an image for every label."""
    starts = range(0, len(labels), batch_size)
    for start in tqdm(starts, unit="batch", disable=None):
        batch = [int(label) for label in labels[start : start + batch_size]]
        # The first one of a batch differs, so that none always runs on a cold cache.
        turn = start // batch_size % len(entries)
        for entry in [*entries[turn:], *entries[:turn]]:
            result = pipelines[entry.plan](
                batch,
                **entry.options,
                first_image=start,
                batch_size=batch_size,
                **options,
            )
            if result.images is None:
                raise DisaError(f"{entry.plan} has no pixels to judge: it needs a decoder")
            entry.images.append(result.images[..., 0])
            entry.stats.add(result.stats)


@dataclass(frozen=True)
class Quality:
    """How near images are to the real ones.

    Attributes:
        accuracy: share of images that the classifier takes for the class asked for.
        distance: Fréchet distance in classifier features to the training images.
    """

    accuracy: float
    distance: float


def quality(
    classifier: Classifier,
    real: Moments,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
) -> Quality:
    """Judge images [n, 32, 32] of the classes `labels`."""
    features, classes = judge(classifier, images)
    accuracy = float((classes == labels).mean())
    return Quality(accuracy, frechet_distance(Moments.of(features), real))


def spread_classes(count: int) -> npt.NDArray[np.int64]:
    """Labels that go round all classes."""
    return np.arange(count) % len(fashion_mnist.CLASS_NAMES)


def real_rows(classifier: Classifier, count: int, data: Path) -> tuple[Moments, Quality]:
    """Moments of the training images, and what as many test images score against them."""
    features, _ = judge(classifier, fashion_mnist.load("train", data)[0])
    moments = Moments.of(features)
    images, labels = fashion_mnist.load("t10k", data)
    # As many images of each class as the generated sets have.
    rows = np.concatenate(
        [
            np.flatnonzero(labels == label)[: np.count_nonzero(spread_classes(count) == label)]
            for label in range(len(fashion_mnist.CLASS_NAMES))
        ]
    )
    return moments, quality(classifier, moments, images[rows], labels[rows])


def record(entry: Entry, score: Quality, fixed: Entry | None) -> dict[str, Any]:
    """One row of the result."""
    seconds = entry.stats.seconds
    calls = entry.stats.head_calls / len(entry.images)
    row = {
        "plan": entry.plan.name,
        "schedule": entry.schedule,
        "head_calls": round(calls),
        "head_rows_per_image": entry.stats.head_rows / entry.stats.images,
        "head_seconds": seconds["head"],
        "seconds": seconds["total"],
        "images": entry.stats.images,
        "accuracy": score.accuracy,
        "frechet_distance": score.distance,
    }
    if fixed is not None:
        row["speedup"] = fixed.stats.seconds["total"] / seconds["total"]
    return row


def table(rows: Iterable[dict[str, Any]], floor: Quality, several_plans: bool) -> str:
    """The result as Markdown."""
    first = "| plan " if several_plans else ""
    lines = [
        f"{first}| schedule | head calls a batch | head s | total s | speed-up | accuracy | "
        "Fréchet distance |",
        f"{'|---' if several_plans else ''}|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines.extend(
        (f"| {row['plan']} " if several_plans else "")
        + f"| {row['schedule']} | {row['head_calls']} | {row['head_seconds']:.1f} "
        + f"| {row['seconds']:.1f} | {row.get('speedup', 1.0):.2f}x | {row['accuracy']:.1%} "
        + f"| {row['frechet_distance']:.2f} |"
        for row in rows
    )
    lines.append(
        ("| " if several_plans else "")
        + f"| *real test images* | | | | | {floor.accuracy:.1%} | {floor.distance:.2f} |"
    )
    return "\n".join(lines)


def picture(entries: Sequence[Entry], path: Path) -> None:
    """A named row of images for each entry: the same classes and seeds below each other."""
    rows = [np.concatenate(list(entry.images[0][:PICTURE_COLUMNS]), axis=1) for entry in entries]
    strip = Image.fromarray(np.concatenate(rows))
    size = (strip.width * ENLARGEMENT, strip.height * ENLARGEMENT)
    image = Image.new("L", (NAME_WIDTH + size[0], size[1]))
    image.paste(strip.resize(size, Image.Resampling.NEAREST), (NAME_WIDTH, 0))
    names, height = ImageDraw.Draw(image), size[1] // len(rows)
    for index, entry in enumerate(entries):
        middle = (NAME_WIDTH - 8, index * height + height // 2)
        names.text(middle, entry.schedule, fill=255, anchor="rm", font_size=14)
    image.save(path)


@click.command(cls=DisaCommand)
@click.argument("plans", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--num",
    type=click.IntRange(2),
    default=5000,
    show_default=True,
    help="Images for each schedule.",
)
@click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True)
@click.option("--schedule", "schedules", multiple=True, help="Such as 'linear 50:5'; repeat it.")
@click.option("--sampler", default=None, help="ddpm, ddim, dpm-solver or dpm-solver++.")
@click.option("--iterations", type=int, default=None, help="AR iterations; the plan's default.")
@click.option("--cfg", type=float, default=None, help="Guidance scale; the plan's default.")
@click.option("--cfg-schedule", default=None, help="linear or constant.")
@click.option("--temperature", type=float, default=None)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=int, default=None, help="CPU threads; all cores by default.")
@click.option("--engine", default="auto", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=fashion_mnist.FOLDER)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("outputs/evaluation"))
def main(
    plans: tuple[Path, ...],
    num: int,
    batch_size: int,
    schedules: tuple[str, ...],
    sampler: str | None,
    iterations: int | None,
    cfg: float | None,
    cfg_schedule: str | None,
    temperature: float | None,
    seed: int,
    threads: int | None,
    engine: str,
    data: Path,
    output: Path,
) -> None:
    """Compare schedules on PLANS of the demo model: cost, accuracy, Fréchet distance, picture."""
    options = {
        "sampler": sampler,
        "num_iterations": iterations,
        "guidance_scale": cfg,
        "guidance_schedule": cfg_schedule,
        "temperature": temperature,
        "seed": seed,
    }
    report(plans, schedules or SCHEDULES, num, batch_size, options, engine, threads, data, output)


def report(
    plans: Sequence[Path],
    schedules: Sequence[str],
    num: int,
    batch_size: int,
    options: dict[str, Any],
    engine: str,
    threads: int | None,
    data: Path,
    output: Path,
) -> None:
    """Draw, judge, and write OUTPUT.md, .json and .png."""
    entries = [Entry(plan, schedule) for plan in plans for schedule in schedules]
    pipelines = {plan: Pipeline.from_plan(plan, engine, threads=threads) for plan in plans}
    # The first run of a session allocates, and an option that cannot be is refused at once.
    for entry in entries:
        pipelines[entry.plan]([0, 1], **entry.options, **options)
    machine = describe_machine()
    classifier = load_classifier()
    real, floor = real_rows(classifier, num, data)
    labels = spread_classes(num)
    draw(pipelines, entries, labels, batch_size, options)
    rows = []
    for entry in entries:
        score = quality(classifier, real, np.concatenate(entry.images), labels)
        rows.append(record(entry, score, entries[0]))
    text = table(rows, floor, len(plans) > 1)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(text + "\n")
    content = {
        "options": options,
        "defaults": {plan.name: pipe.plan.manifest.defaults for plan, pipe in pipelines.items()},
        "machine": machine,
        "num": num,
        "batch_size": batch_size,
        "engine": {plan.name: pipe.engine for plan, pipe in pipelines.items()},
        "rows": rows,
        "real": vars(floor),
    }
    output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    picture(entries, output.with_suffix(".png"))
    click.echo(text)
    click.echo(f"written: {output}.md, .json and .png")


if __name__ == "__main__":
    main()
