"""Compares constant steps with DiSA on the demo model: `python -m demo.evaluate PLAN...`.

All schedules generate the same images (classes, seed, generation orders, first noise). They
alternate batch by batch, so that changes of the machine's speed affect all equally.
"""

import json
import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from tqdm import tqdm

from disa.bench.machine import describe_machine
from disa.commands.command import DisaCommand
from disa.errors import DisaError
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats
from disa.tables import markdown

from .classifier import load as load_classifier
from .data import captions, fashion_mnist
from .kept_batches import Batch, KeptBatches
from .quality import Quality, quality, real_quality, spread_classes

# Constant steps start at timestep 950, as DiSA does. The strategy `fixed` starts at 999, where the
# error of so small a model is multiplied by thousands and the images are only noise.
SCHEDULES = ("constant 50", "linear 50:5", "constant 27", "constant 5")
GRID_COLUMNS = 20
ENLARGEMENT = 2
NAME_WIDTH = 120


@dataclass
class ScheduleRun:
    """A schedule on a plan, with the images and their cost.

    Attributes:
        plan: path of the plan.
        schedule: such as "linear 50:5", also with options such as "order=checkerboard".
        refresh: the iterations with a full pass of a cached backbone; None for all.
        cpu_seconds: CPU time of all images.
        stats: other costs.
        images: batches [n, 32, 32].
    """

    plan: Path
    schedule: str
    refresh: str | None = None
    cpu_seconds: float = 0.0
    stats: Stats = field(default_factory=Stats)
    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The schedule, and the full passes of a cached backbone."""
        return self.schedule + (f", refresh {self.refresh}" if self.refresh else "")

    @property
    def options(self) -> dict[str, Any]:
        """The options of the pipeline.

        Raises:
            DisaError: the schedule is not valid.
        """
        return {"refresh": self.refresh, **self._steps} if self.refresh else self._steps

    @property
    def _steps(self) -> dict[str, Any]:
        words = self.schedule.split()
        others = dict(word.split("=", 1) for word in words if "=" in word)
        more: dict[str, Any] = {name: parse_value(value) for name, value in others.items()}
        match [word for word in words if "=" not in word]:
            case ["fitted", path]:
                return {"schedule": path, **more}
            case ["adaptive", steps, tolerance]:
                adaptive = {"strategy": "adaptive", "tolerance": float(tolerance)}
                return {**adaptive, "steps": steps, **more}
            case [strategy, steps]:
                return {"strategy": strategy, "steps": steps, **more}
        raise DisaError(
            f"a schedule is a strategy and its steps, such as 'linear 50:5', 'fitted FILE' or "
            f"'adaptive 50:5 0.02', with options as name=value if needed, not {self.schedule!r}"
        )


def parse_value(text: str) -> int | float | str:
    """The text as a number if possible, otherwise unchanged."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def generate(
    pipelines: dict[Path, Pipeline],
    runs: Sequence[ScheduleRun],
    labels: npt.NDArray[np.int64],
    batch_size: int,
    options: dict[str, Any],
    kept: KeptBatches | None = None,
) -> None:
    """Generate an image for every label with each run, in alternation.

    Args:
        pipelines: the opened plans.
        runs: receive the images and their cost.
        labels: the classes, [n].
        options: options of the pipelines for all runs.
        kept: batches of an interrupted evaluation; receives the others.
    """
    starts = range(0, len(labels), batch_size)
    for start in tqdm(starts, unit="batch", disable=None):
        batch = labels[start : start + batch_size]
        # Another run is first in each batch, so that none always runs on a cold cache.
        turn = start // batch_size % len(runs)
        for run in [*runs[turn:], *runs[:turn]]:
            pipe = pipelines[run.plan]
            arguments = {
                **conditions(pipe, batch),
                "first_image": start,
                "batch_size": batch_size,
                **options,
                **run.options,
            }
            draw = partial(generate_batch, pipe, arguments)
            images, stats, cpu_seconds = kept.get(pipe, arguments, draw) if kept else draw()
            run.cpu_seconds += cpu_seconds
            run.images.append(images)
            run.stats.add(stats)


def generate_batch(pipe: Pipeline, arguments: dict[str, Any]) -> Batch:
    """Generate images [n, 32, 32], and measure their cost.

    Raises:
        DisaError: the plan has no decoder, or refuses an argument.
    """
    started = time.process_time()
    result = pipe(**arguments)
    cpu_seconds = time.process_time() - started
    if result.images is None:
        raise DisaError(f"{pipe.plan.path} has no decoder to pixels: export it with --vae")
    return result.images[..., 0], result.stats, cpu_seconds


def conditions(pipe: Pipeline, labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The arguments of a pipeline for these classes: class labels, or a prompt for each class."""
    if pipe.family.classes is None:
        prompts = captions.prompts()
        return {"prompt": [prompts[label] for label in labels]}
    return {"class_labels": [int(label) for label in labels]}


def without_folder(schedule: str) -> str:
    """A schedule with the name of its file, if it has one, instead of the path."""
    kind, *rest = schedule.split()
    if kind == "fitted":
        rest[0] = Path(rest[0]).name
    return " ".join([kind, *rest])


def row_of(run: ScheduleRun, score: Quality, baseline: ScheduleRun | None) -> dict[str, Any]:
    """The cost and the quality of a run, as JSON; the speed-up is relative to the baseline."""
    seconds = run.stats.seconds
    calls = run.stats.head_calls / len(run.images)
    row = {
        "plan": run.plan.name,
        "schedule": without_folder(run.schedule),
        "refresh": run.refresh,
        "head_calls": round(calls),
        "head_rows_per_image": run.stats.head_rows / run.stats.images,
        "head_seconds": seconds["head"],
        "backbone_seconds": seconds.get("backbone", 0.0),
        "seconds": seconds["total"],
        "cpu_seconds": run.cpu_seconds,
        "images": run.stats.images,
        "accuracy": score.accuracy,
        "frechet_distance": score.distance,
    }
    if baseline is not None:
        row["speedup"] = baseline.stats.seconds["total"] / seconds["total"]
    return row


def table(rows: Iterable[dict[str, Any]], real: Quality, several_plans: bool) -> str:
    """The rows as a Markdown table, with the quality of real images below."""
    headings = ("schedule", "head calls a batch", "head s", "total s", "speed-up", "accuracy")
    lines = [
        [
            *((row["plan"],) if several_plans else ()),
            *(_name(row), str(row["head_calls"]), f"{row['head_seconds']:.1f}"),
            *(f"{row['seconds']:.1f}", f"{row.get('speedup', 1.0):.2f}x"),
            *(f"{row['accuracy']:.1%}", f"{row['frechet_distance']:.2f}"),
        ]
        for row in rows
    ]
    lines.append(
        [
            *(("",) if several_plans else ()),
            *("*real test images*", "", "", "", ""),
            *(f"{real.accuracy:.1%}", f"{real.distance:.2f}"),
        ]
    )
    plans = ("plan",) if several_plans else ()
    all_headings = (*plans, *headings, "Fréchet distance")
    return markdown(all_headings, lines, left=1 + several_plans)


def _name(row: dict[str, Any]) -> str:
    return str(row["schedule"] + (f", refresh {row['refresh']}" if row.get("refresh") else ""))


def save_grid(runs: Sequence[ScheduleRun], path: Path) -> None:
    """Write the first images of each run as a row with its name; columns have the same noise."""
    rows = [np.concatenate(list(run.images[0][:GRID_COLUMNS]), axis=1) for run in runs]
    strip = Image.fromarray(np.concatenate(rows))
    size = (strip.width * ENLARGEMENT, strip.height * ENLARGEMENT)
    image = Image.new("L", (NAME_WIDTH + size[0], size[1]))
    image.paste(strip.resize(size, Image.Resampling.NEAREST), (NAME_WIDTH, 0))
    names, height = ImageDraw.Draw(image), size[1] // len(rows)
    for index, run in enumerate(runs):
        middle = (NAME_WIDTH - 8, index * height + height // 2)
        names.text(
            middle, re.sub(r"fitted \S+", "fitted", run.name), fill=255, anchor="rm", font_size=12
        )
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
@click.option(
    "--schedule",
    "schedules",
    multiple=True,
    help="Such as 'linear 50:5' or 'linear 50:5 order=checkerboard'; may be repeated.",
)
@click.option(
    "--refresh",
    "refreshes",
    multiple=True,
    help="Full passes of a cached backbone, such as 4:4, or none; may be repeated.",
)
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
@click.option("--resume", is_flag=True, help="Continue an interrupted evaluation by the same code.")
def main(
    plans: tuple[Path, ...],
    num: int,
    batch_size: int,
    schedules: tuple[str, ...],
    refreshes: tuple[str, ...],
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
    resume: bool,
) -> None:
    """Compare schedules on PLANS of the demo model by cost, accuracy and Fréchet distance."""
    options = {
        "sampler": sampler,
        "num_iterations": iterations,
        "guidance_scale": cfg,
        "guidance_schedule": cfg_schedule,
        "temperature": temperature,
        "seed": seed,
    }
    runs = [
        ScheduleRun(plan, schedule, None if refresh == "none" else refresh)
        for plan in plans
        for schedule in schedules or SCHEDULES
        for refresh in refreshes or ("none",)
    ]
    evaluate(runs, num, batch_size, options, engine, threads, data, output, resume)


def evaluate(
    runs: Sequence[ScheduleRun],
    num: int,
    batch_size: int,
    options: dict[str, Any],
    engine: str,
    threads: int | None,
    data: Path,
    output: Path,
    resume: bool = False,
) -> None:
    """Generate images, measure their quality, and write OUTPUT.md, .json and .png.

    Batches are kept in the folder OUTPUT.batches until the result is written.

    Args:
        runs: the schedules; the first one is the baseline of the speed-up.
        num: images of each run.
        options: options of the pipelines for all runs.
        engine: engine of the graphs.
        threads: CPU threads; None for all cores.
        data: folder of the data set.
        output: path of the result without a suffix.
        resume: continue with the kept batches of an interrupted evaluation by the same code.
    """
    plans = {run.plan: None for run in runs}
    pipelines = {plan: Pipeline.from_plan(plan, engine, threads=threads) for plan in plans}
    # The first call of a session allocates memory, and shows early which options are not valid.
    for run in runs:
        pipe = pipelines[run.plan]
        pipe(**conditions(pipe, np.arange(2)), **{**options, **run.options})
    machine = describe_machine()
    classifier = load_classifier()
    moments, real = real_quality(classifier, num, data)
    labels = spread_classes(num)
    batches = output.with_suffix(".batches")
    if not resume:
        shutil.rmtree(batches, ignore_errors=True)
    kept = KeptBatches(batches)
    generate(pipelines, runs, labels, batch_size, options, kept)
    rows = []
    for run in runs:
        score = quality(classifier, moments, np.concatenate(run.images), labels)
        rows.append(row_of(run, score, runs[0]))
    text = table(rows, real, len(plans) > 1)
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
        "real": vars(real),
    }
    output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    save_grid(runs, output.with_suffix(".png"))
    shutil.rmtree(batches, ignore_errors=True)
    click.echo(text)
    click.echo(f"written: {output}.md, .json and .png")


if __name__ == "__main__":
    main()
