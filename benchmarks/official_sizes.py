"""Exports every official size with random weights and generates an image with few steps.

    python -m benchmarks.official_sizes -o benchmarks/results/official_sizes.json
    python -m benchmarks.official_sizes --only mar_h --only harmon_1.5b --precision fp16

Export and run are in processes of their own. The files of a size are removed before the next one.
Entries of an existing record are kept unless they are measured again.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from disa.bench.machine import peak_memory, reset_peak_memory
from disa.bench.measure import measure as generate
from disa.bench.report import check_writable, figure, write_record
from disa.bench.variant import Variant
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
from disa.tables import table

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

    Raises:
        DisaError: the export or the run fails, or its process was killed.
    """
    plan = folder / f"{size}.plan"
    entry: Record = {"family": SIZES[size], "precision": precision, **moment()}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            entry |= pool.submit(export_size, size, plan, precision).result()
        except BrokenProcessPool:
            raise DisaError(f"the export of {size} was killed: memory may have run out") from None
    options = SHORT[SIZES[size]]
    variant = Variant(engine, 1, options)
    generated = generate(plan, [variant], repeat=1, warmup=0, threads=threads)
    (loaded,), (run,) = generated["engines"].values(), generated["variants"]
    return entry | {
        "options": options,
        "engine": loaded["runs"],
        "load_seconds": loaded["load_seconds"],
        "run_peak_bytes": run["peak_memory_bytes"],
        "seconds": {"total": run["seconds_an_image"]["median"], **run["parts"]},
        "head_calls": run["head_calls"],
    }


def export_size(size: str, plan: Path, precision: str) -> Record:
    """Make a checkpoint in the official layout and export it; returns what that cost."""
    checkpoint = plan.with_suffix(".pth")
    weights = random_checkpoint(official_config(size), checkpoint)
    tokenizer = byte_tokenizer(plan.parent) if reads_text(size) else None
    reset_peak_memory()
    start, cpu_start = time.perf_counter(), time.process_time()
    exported = export(checkpoint, plan, precision=precision, tokenizer=tokenizer)
    return {
        "export_seconds": time.perf_counter() - start,
        "export_cpu_seconds": time.process_time() - cpu_start,
        "export_peak_bytes": peak_memory(),
        "weights": weights,
        "checkpoint_bytes": checkpoint.stat().st_size,
        "plan_bytes": plan.stat().st_size,
        "difference": max(error.relative for error in exported.errors),
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
