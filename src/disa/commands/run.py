"""disa-run: generates images with a plan."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from ..engines.open import ENGINES
from ..hub import is_hub_name, pin_plan
from ..progress import image_progress
from ..runtime.families.conditions.labels import read_labels
from ..runtime.outputs.formats.geneval import write_metadata
from ..runtime.outputs.record import RECORD
from ..runtime.outputs.run_folder import GRID, RunFolder
from ..runtime.outputs.selection import Selection
from ..runtime.outputs.store import Store, open_store, storing
from ..runtime.stats import MODEL_PARTS, Stats
from ..workers.job import Job, Workers
from ..workers.local import LocalWorker
from .options.groups import ENGINE, OUTPUT, WHAT, GroupedCommand
from .options.outputs import OutputOptions, output_options
from .options.sampling import sampling_options
from .options.selection import (
    Conditions,
    SelectionOptions,
    prompt_metadata,
    select_images,
    selection_options,
)

Options = TypeVar("Options", SelectionOptions, OutputOptions)
GROUPS = {
    WHAT: (
        "num",
        "per_class",
        "first_image",
        "classes",
        "prompts",
        "prompt_file",
        "rows",
        "labels",
        "seed",
    ),
    ENGINE: ("engine", "threads", "batch_size", "workers", "ray_address"),
    OUTPUT: (
        "output",
        "format",
        "image_type",
        "quality",
        "shard_images",
        "npz",
        "overwrite",
        "as_json",
    ),
}


class BatchSize(click.ParamType):
    """A positive number, or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        if value is None or value == "auto":
            return None
        try:
            size = int(value)
        except ValueError:
            size = 0
        if size < 1:
            self.fail(f"{value!r} is neither a positive number nor auto", param, ctx)
        return size


def pop_options(kind: type[Options], options: dict[str, Any]) -> Options:
    """An options dataclass, filled with its values, which are removed from `options`."""
    return kind(**{field.name: options.pop(field.name) for field in fields(kind)})


@click.command(
    cls=GroupedCommand,
    groups=GROUPS,
    epilog="Examples:\n\n\b\n"
    "  disa-run engines/mar_b.plan --num 64\n"
    "  disa-run engines/fashion.plan --class sneaker --class bag --num 8 --seed 3\n"
    "  disa-run engines/mar_b.plan --class 207 --cfg 2.9 --steps 50:5 -o dogs --npz\n"
    '  disa-run engines/harmon_1.5b.plan --prompt "a dog and a cat" --size 512',
)
@click.argument("plan")
@selection_options
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Text file with one class name a line [the names in the plan].",
)
@click.option(
    "--batch-size",
    type=BatchSize(),
    default="auto",
    show_default=True,
    help="Images generated together; auto derives the number from the size of the model.",
)
@sampling_options
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="Engine of the graphs; auto selects the fastest available one.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "--workers",
    type=click.IntRange(0, 100_000),
    default=0,
    show_default=True,
    help="Worker processes (Ray), each with a GPU or a share of the cores; 0 uses this process.",
)
@click.option(
    "--ray-address",
    help="Address of a Ray cluster: auto, or host:port. Without --workers, each GPU gets one "
    "worker.",
)
@output_options
@click.option("--json", "as_json", is_flag=True, help="Print the run record as JSON.")
def main(
    plan: str,
    labels: Path | None,
    batch_size: int | None,
    engine: str,
    threads: int | None,
    workers: int,
    ray_address: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Generate images with PLAN as numbered files, with a grid of the first 400.

    PLAN is a file, or hf://organisation/repository[@revision][/file] on the Hugging Face hub.
    The plan has the defaults of the sampling options (disa-inspect shows them). Image i of a seed
    is the same for any batch size. The folder also gets run.json, with the options, the engine and
    the cost. The same command continues an interrupted run.
    """
    chosen, files = pop_options(SelectionOptions, options), pop_options(OutputOptions, options)
    extra: dict[str, Any] = {}
    if is_hub_name(plan):
        plan = str(pin_plan(plan))
        extra["plan_source"] = plan
    job = Job(plan, engine, threads, options, batch_size)
    with open_workers(job, workers, ray_address) as runner:
        about = runner.description
        names = read_labels(labels, about.classes) if labels else about.class_names
        conditions = Conditions(about.family, about.classes, names, runner.check_prompts)
        selection = select_images(chosen, conditions)
        metadata = prompt_metadata(chosen) if files.format == "geneval" else []
        layout = files.layout(len(selection), about.batch_size, len(metadata))
        request = describe_run(about.request, selection)
        store = open_store(files.output)
        with RunFolder(
            store, request, selection, layout, about.engine, files.overwrite, extra
        ) as folder:
            if not as_json:
                click.echo(f"{about.name}: {about.engine}")
            with storing(store):
                write_metadata(store, metadata)
            with image_progress(folder.missing()) as advance:
                started = time.perf_counter()
                stats = runner.run(folder, advance)
                seconds = time.perf_counter() - started
            record = folder.finish(names, files.npz)
    click.echo(
        json.dumps(record, indent=1) if as_json else summary(len(selection), stats, seconds, store)
    )


@contextmanager
def open_workers(job: Job, count: int, address: str | None) -> Iterator[Workers]:
    """The workers that generate the images: this process, or Ray workers."""
    if not count and address is None:
        yield LocalWorker(job)
        return
    from ..workers.cluster import ray_workers

    with ray_workers(job, count or None, address) as workers:
        yield workers


def describe_run(request: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Everything that determines the images of a run."""
    seed = selection.seeds if isinstance(selection.seeds, int) else "one a row"
    return {**request, "seed": seed}


def summary(images: int, stats: Stats, seconds: float, store: Store) -> str:
    """The number of images, the cost and the folder as text for the terminal."""
    has_grid = store.exists(GRID)
    place = f"{store}/{GRID if has_grid else RECORD}"
    if not has_grid:
        place += "\nthese are latents (.npy): a plan that was exported with --vae gives images"
    if not stats.images:
        return f"all {images} images exist already: {place}"
    parts = ", ".join(
        f"{part} {stats.seconds[part]:.1f} s" for part in MODEL_PARTS if part in stats.seconds
    )
    return (
        f"{stats.images} image{'' if stats.images == 1 else 's'} in {seconds:.1f} s "
        f"({stats.images / seconds:.2f} a second), "
        f"{stats.head_calls} head calls ({parts})\n{place}"
    )
