"""disa-run: draws images with a plan."""

import json
from collections.abc import Sequence
from dataclasses import fields
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import click

from ..cli import DisaCommand, progress_bar
from ..engines.open import ENGINES
from ..errors import DisaError
from .families import AnySettings
from .labels import find_class, read_labels
from .noise import PhiloxNoise
from .options import sampling_options
from .outputs import GRID, RECORD, Outputs, identify
from .pipeline import Pipeline
from .prompt import read_prompts
from .stats import Stats

T = TypeVar("T")

DEFAULT_NUM = 16
MAX_NUM = 1_000_000


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


@click.command(
    cls=DisaCommand,
    epilog="Examples:\n\n\b\n"
    "  disa-run engines/mar_b.plan --num 64\n"
    "  disa-run engines/fashion.plan --class sneaker --class bag --num 8 --seed 3\n"
    "  disa-run engines/mar_b.plan --class 207 --cfg 2.9 --steps 50:5 -o dogs --npz\n"
    '  disa-run engines/harmon_1.5b.plan --prompt "a dog and a cat" --size 512',
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--num",
    type=click.IntRange(1, MAX_NUM),
    help=f"Images to draw; by default one for each --class, or {DEFAULT_NUM}.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    help="Class by number or by name; may be repeated. By default all classes in turn.",
)
@click.option("--prompt", "prompts", multiple=True, help="Text to draw; may be repeated.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="Texts to draw, one a line.")
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 10),
    help="Change of a token between two denoising steps below which steps are left out; "
    "0.05 with --strategy adaptive.",
)
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--batch-size", type=BatchSize(), default="auto", show_default=True)
@sampling_options
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="What runs the graphs; auto takes the fastest that is here.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("outputs"),
    show_default=True,
    help="Folder for the images; a run that was interrupted goes on there.",
)
@click.option("--npz", is_flag=True, help="Also write samples.npz (uint8 NHWC, for FID tools).")
@click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds.")
@click.option("--json", "as_json", is_flag=True, help="Print the run record as JSON.")
def main(
    plan: Path,
    num: int | None,
    classes: tuple[str, ...],
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    labels: Path | None,
    seed: int,
    batch_size: int | None,
    engine: str,
    threads: int | None,
    output: Path,
    npz: bool,
    overwrite: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Draw images with PLAN and write them as numbered PNG files with a grid of the first 400.

    Options that are not given come from the plan. Image i of a seed is the same whatever the
    batch size. The folder also gets run.json: the options, what ran, and what it cost.
    """
    pipe = Pipeline.from_plan(plan, engine, threads=threads)
    names = read_labels(labels, pipe.family.classes) if labels else pipe.class_names
    settings = pipe.settings(**sampling)
    conditions: Sequence[int | str]
    if pipe.family.classes is None:
        conditions = choose_prompts(pipe, num, prompts, prompt_file, classes)
    elif prompts or prompt_file:
        raise DisaError(f"a {pipe.plan.manifest.family} model draws classes: give --class")
    else:
        conditions = choose_classes(num, classes, pipe.family.classes, names)
    outputs = Outputs(output, describe(pipe, settings, seed), conditions, pipe.engine, overwrite)
    if not as_json:
        click.echo(f"{pipe.plan.manifest.name}: {pipe.engine}")
    stats = draw_missing(pipe, settings, seed, conditions, outputs, batch_size)
    record = outputs.finish(stats, names, npz)
    click.echo(json.dumps(record, indent=1) if as_json else summary(record, stats, output))


def choose_classes(
    num: int | None, given: Sequence[str], classes: int, names: Sequence[str] | None
) -> list[int]:
    """The class of each image: those given in turn, or all classes spread evenly."""
    if given:
        chosen = [find_class(label, classes, names) for label in given]
        return take_in_turn(chosen, num or len(chosen))
    count = num or DEFAULT_NUM
    if count >= classes:
        return take_in_turn(range(classes), count)
    return [index * classes // count for index in range(count)]


def choose_prompts(
    pipe: Pipeline,
    num: int | None,
    given: Sequence[str],
    file: Path | None,
    classes: Sequence[str],
) -> list[str]:
    """The prompt of each image: those given and those of the file, in turn."""
    if classes:
        raise DisaError(f"a {pipe.plan.manifest.family} model draws prompts: give --prompt")
    prompts = [*given, *(read_prompts(file) if file else [])]
    if not prompts:
        raise DisaError("there is nothing to draw: give --prompt TEXT or --prompt-file FILE")
    return pipe.family.conditions(take_in_turn(prompts, num or len(prompts)))


def take_in_turn(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, starting over when they are used up."""
    return list(islice(cycle(items), count))


def describe(pipe: Pipeline, settings: AnySettings, seed: int) -> dict[str, Any]:
    """What decides the pictures of a run."""
    options = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {
        "plan": pipe.plan.manifest.name,
        "plan_sha256": identify(pipe.plan),
        "seed": seed,
        **{
            name: value if isinstance(value, int | float) else str(value)
            for name, value in options.items()
        },
    }


def draw_missing(
    pipe: Pipeline,
    settings: AnySettings,
    seed: int,
    conditions: Sequence[Any],
    outputs: Outputs,
    batch_size: int | None,
) -> Stats:
    """Draw the images that the folder does not hold yet, batch by batch."""
    missing = outputs.missing()
    size = batch_size or pipe.auto_batch_size(settings)
    stats = Stats()
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    total = len(batches) * pipe.family.iterations(settings)
    with progress_bar(total, f"{len(missing)} images", "iteration") as advance:
        for batch in batches:
            images, latents = pipe.draw(
                [conditions[index] for index in batch],
                settings,
                PhiloxNoise(seed, batch),
                stats,
                lambda _: advance(1),
            )
            for position, index in enumerate(batch):
                image = None if images is None else images[position]
                outputs.add(index, image, latents[position])
            outputs.checkpoint(stats)
    return stats


def summary(record: dict[str, Any], stats: Stats, folder: Path) -> str:
    """What was drawn, what it cost and where it is, for people."""
    drawn = (folder / GRID).exists()
    shown = str(folder / GRID if drawn else folder / RECORD)
    if not drawn:
        shown += "\nthese are latents (.npy): a plan that was exported with --vae gives images"
    if not stats.images:
        return f"all {record['stats']['images']} images were there already: {shown}"
    seconds = stats.seconds["total"]
    parts = ", ".join(
        f"{part} {stats.seconds[part]:.1f} s"
        for part in ("backbone", "head", "decoder")
        if part in stats.seconds
    )
    return (
        f"{stats.images} image{'' if stats.images == 1 else 's'} in {seconds:.1f} s "
        f"({stats.images / seconds:.2f} a second), "
        f"{stats.head_calls} head calls ({parts})\n{shown}"
    )
