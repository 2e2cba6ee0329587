"""Times how the cost of generation grows: with images, AR iterations, denoising steps and tokens.

    python -m benchmarks.growth --json benchmarks/results/growth.json

Images of a small MAR with random weights are generated at one point, and at others that differ from
it in one quantity. The work is reported beside the time: the floating-point operations of all
matmuls. Where time grows like work, the rate is constant; where it grows faster, the rate falls.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from disa.bench.measure import measure
from disa.bench.report import check_writable, figure, write_record
from disa.bench.variant import Variant
from disa.commands.command import DisaCommand
from disa.exporter.families.configs.mar import MARConfig
from disa.progress import progress_bar
from disa.runtime.stats import LOOP_PARTS
from disa.tables import table

from .random_plan import write_plan

BASE = MARConfig(
    img_size=128,
    vae_stride=16,
    patch_size=1,
    vae_embed_dim=16,
    class_num=10,
    buffer_size=16,
    encoder_embed_dim=256,
    encoder_depth=4,
    encoder_num_heads=4,
    decoder_embed_dim=256,
    decoder_depth=4,
    decoder_num_heads=4,
    diffloss_d=3,
    diffloss_w=256,
)
"""64 tokens."""
POINT = {"batch_size": 4, "iterations": 16, "steps": 25}
AXES: Mapping[str, Sequence[int]] = {
    "batch_size": (1, 2, 4, 8, 16, 32),
    "iterations": (4, 8, 16, 32, 64),
    "steps": (5, 10, 25, 50, 100),
    "tokens": (16, 64, 144, 256),
}
TITLES = {
    "batch_size": "images of a batch",
    "iterations": "AR iterations",
    "steps": "denoising steps",
    "tokens": "tokens of an image",
}
TIMED = (*LOOP_PARTS, "host")
HEADINGS = ("of", "", "s/batch", "GFLOP", "GFLOP/s", *(f"{part} s" for part in TIMED))


@click.command(cls=DisaCommand)
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(repeat: int, threads: int | None, output: Path | None) -> None:
    """Time how the cost of generation grows."""
    if output:
        check_writable(output)
    batches = sum(map(len, AXES.values())) * (repeat + 1)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar(batches, "measuring", "batch") as advance,
    ):
        record = grow(Path(folder), AXES, repeat, threads, advance)
    if output:
        write_record(record, output)
    click.echo(table(HEADINGS, growth_rows(record)))


def grow(
    folder: Path,
    axes: Mapping[str, Sequence[int]],
    repeat: int,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Generate a batch at every point of every axis, and return its cost as JSON.

    Args:
        folder: for plans that are needed for a short time only.
    """
    record: dict[str, Any] = {"kind": "growth", "repeat": repeat, "threads": threads, "axes": {}}
    for tokens, points in _by_plan(axes):
        path = folder / f"{tokens}.plan"
        write_plan(replace(BASE, img_size=BASE.vae_stride * round(tokens**0.5)), "fp32", path)
        chosen = [_variant({**POINT, axis: value}) for axis, value in points]
        measured = measure(path, chosen, repeat=repeat, warmup=1, threads=threads, advance=advance)
        for name in ("date", "machine", "versions"):
            record.setdefault(name, measured[name])
        record["machine"]["load_after"] = measured["machine"]["load_after"]
        for (axis, value), entry in zip(points, measured["variants"], strict=True):
            record["axes"].setdefault(axis, []).append(_entry(value, entry))
    return record


def _by_plan(axes: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """Points that share a plan: all except those on the axis of tokens use that of `BASE`."""
    base = (BASE.img_size // BASE.vae_stride) ** 2
    same = [(axis, value) for axis, values in axes.items() for value in values if axis != "tokens"]
    if same:
        yield base, same
    for tokens in axes.get("tokens", ()):
        yield tokens, [("tokens", tokens)]


def _variant(point: Mapping[str, int]) -> Variant:
    options = {
        "num_iterations": point["iterations"],
        "steps": str(point["steps"]),
        "strategy": "constant",
    }
    return Variant("cpu", point["batch_size"], options)


def _entry(value: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The cost of a batch, from the cost of an image."""
    batch, parts = entry["batch_size"], entry["parts"]
    return {
        "value": value,
        "seconds": batch * entry["seconds_an_image"]["median"],
        "parts": {part: batch * seconds for part, seconds in parts.items()},
        "flops": batch * entry["floor"]["flops_an_image"],
    }


def growth_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a record under HEADINGS."""
    return [
        [
            TITLES[axis],
            str(entry["value"]),
            figure(entry["seconds"]),
            figure(entry["flops"] / 1e9),
            figure(entry["flops"] / 1e9 / entry["seconds"]),
            *(figure(entry["parts"][part]) for part in TIMED),
        ]
        for axis, entries in record["axes"].items()
        for entry in entries
    ]


if __name__ == "__main__":
    main()
