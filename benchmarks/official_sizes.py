"""Exports every official size with random weights and generates an image with few steps.

    python -m benchmarks.official_sizes -o benchmarks/results/official_sizes.json
    python -m benchmarks.official_sizes --only mar_h --only harmon_1.5b --precision fp16

Each part runs in its own process. The files of a size are removed before the next one. Entries of
an existing record are kept unless they are measured again.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from disa.bench.report import check_writable, figure, write_record
from disa.commands.command import DisaCommand
from disa.errors import DisaError
from disa.exporter.export import export
from disa.exporter.random_weights import (
    SIZES,
    byte_tokenizer,
    official_config,
    random_checkpoint,
    reads_text,
)
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats
from disa.tables import table

from .process import run_in_process
from .records import Record, moment, new_record

KIND = "official_sizes"
GIB = 1 << 30
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
SHORT: Mapping[str, dict[str, Any]] = {
    "mar": {"num_iterations": 4, "steps": "4:2"},
    "flowar": {"steps": "4:2"},
    "xar": {"steps": "4:2"},
    "harmon": {"num_iterations": 4, "steps": "4:2", "size": "128"},
}
"""Sampling options of the short run; the guidance is the plan's."""
PROMPT = "a dog on the left and a cat on the right"
HEADINGS = (
    *("size", "precision", "million weights", "plan GB", "export s", "CPU s", "export GiB"),
    *("differs by", "load s", "run s", "run GiB", "head calls"),
)


@click.command(cls=DisaCommand)
@click.option("--only", multiple=True, type=click.Choice(list(SIZES)), help="All by default.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32")
@click.option("--engine", default="cpu", show_default=True, help="Engine of the graphs.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option("--scratch", type=FOLDER, help="Folder for up to 35 GB of files.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record.")
def main(
    only: tuple[str, ...],
    precision: str,
    engine: str,
    threads: int | None,
    scratch: Path | None,
    output: Path | None,
) -> None:
    """Export every official size with random weights, and generate an image with each."""
    entries: dict[str, Record] = {}
    if output:
        check_writable(output)
        entries = read_entries(output)
    for size in only or SIZES:
        with tempfile.TemporaryDirectory(prefix="sizes-", dir=scratch) as folder:
            entries[size] = measure(size, Path(folder), precision, engine, threads)
        click.echo(table(HEADINGS, size_rows({size: entries[size]})))
        if output:
            ordered = {name: entries[name] for name in SIZES if name in entries}
            write_record({**new_record(KIND), "entries": ordered}, output)


def read_entries(path: Path) -> dict[str, Record]:
    """The entries of an existing record by size; none if there is no file yet.

    Raises:
        DisaError: the file is not a record of official sizes.
    """
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        kind, entries = record["kind"], dict(record["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DisaError(f"{path} is not a record of {KIND}: give another file") from error
    if kind != KIND:
        raise DisaError(f"{path} is a record of {kind}, not of {KIND}: give another file")
    return entries


def measure(size: str, folder: Path, precision: str, engine: str, threads: int | None) -> Record:
    """Measure the export and a short run of an official size; returns the entry of the record.

    Args:
        folder: for the checkpoint and the plan.
    """
    checkpoint, plan = folder / f"{size}.pth", folder / f"{size}.plan"
    entry: Record = {"family": SIZES[size], "precision": precision, **moment()}
    made = run_in_process(make_checkpoint, size, checkpoint)
    exported = run_in_process(make_plan, size, checkpoint, plan, precision)
    generated = run_in_process(generate, plan, SIZES[size], engine, threads)
    return entry | {
        "weights": made.result,
        "checkpoint_bytes": checkpoint.stat().st_size,
        "plan_bytes": plan.stat().st_size,
        "export_seconds": exported.seconds,
        "export_cpu_seconds": exported.cpu_seconds,
        "export_peak_bytes": exported.peak_memory,
        "difference": exported.result,
        "options": SHORT[SIZES[size]],
        "run_peak_bytes": generated.peak_memory,
        "run_own_bytes": generated.own_memory,
        **generated.result,
    }


def make_checkpoint(size: str, path: Path) -> int:
    """Write a checkpoint in the official layout; returns the number of its weights."""
    return random_checkpoint(official_config(size), path)


def make_plan(size: str, checkpoint: Path, plan: Path, precision: str) -> float:
    """Export without a configuration; returns the largest difference from the fp32 model."""
    tokenizer = byte_tokenizer(checkpoint.parent) if reads_text(size) else None
    exported = export(checkpoint, plan, precision=precision, tokenizer=tokenizer)
    return max(error.relative for error in exported.errors)


def generate(plan: Path, family: str, engine: str, threads: int | None) -> Record:
    """Load a plan and generate one image; returns the cost as JSON.

    Raises:
        DisaError: the latents are not finite.
    """
    stats = Stats()
    with stats.timed("load"):
        pipe = Pipeline.from_plan(plan, engine, threads=threads)
    text = pipe.family.classes is None
    conditions = pipe.conditions(None, PROMPT) if text else pipe.conditions(207)
    requests = pipe.requests(conditions, pipe.options(**SHORT[family]), 0, [0])
    (output,) = pipe.generate(requests, stats)
    if not output.finite:
        raise DisaError(f"{plan.stem}: the image is not finite")
    return {
        "engine": pipe.engine,
        "latents": [1, *output.latents.shape],
        "load_seconds": stats.seconds.pop("load"),
        "seconds": stats.seconds,
        "head_calls": stats.head_calls,
    }


def size_rows(entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The cells of entries under HEADINGS."""
    return [
        [
            size,
            entry["precision"],
            f"{entry['weights'] / 1e6:.0f}",
            f"{entry['plan_bytes'] / 1e9:.2f}",
            figure(entry["export_seconds"]),
            figure(entry.get("export_cpu_seconds")),
            _gib(entry["export_peak_bytes"]),
            f"{entry['difference']:.1e}",
            figure(entry["load_seconds"]),
            figure(entry["seconds"]["total"]),
            _gib(entry["run_peak_bytes"]),
            str(entry["head_calls"]),
        ]
        for size, entry in entries.items()
    ]


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.2f}"


if __name__ == "__main__":
    main()
