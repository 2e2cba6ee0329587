"""Compares a run in one process with Ray workers: `python -m benchmarks.scale PLAN`.

Each variant generates the same images in its own process. The overhead of Ray for a unit is the
time in which the workers do not generate, divided by the number of units. The time until the first
unit is finished is shown separately, because it occurs once.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from disa.bench.machine import describe_machine, peak_memory
from disa.bench.report import check_writable, write_record
from disa.commands.command import DisaCommand
from disa.errors import DisaError
from disa.tables import table

VARIANTS: Mapping[str, Sequence[str]] = {
    "one process, all threads": ("--threads", "{cores}"),
    "one process, one thread": ("--threads", "1"),
    "1 worker, one thread": ("--threads", "1", "--workers", "1"),
    "2 workers, one thread each": ("--threads", "1", "--workers", "2"),
}
HEADINGS = (
    "variant",
    "images/s",
    "s in all",
    "s to the first unit",
    "ms of overhead a unit",
    "MiB a process",
)
POLL_SECONDS = 0.05


@click.command(cls=DisaCommand)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--num", type=click.IntRange(1), default=256, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path))
def main(plan: Path, num: int, batch_size: int, output: Path | None) -> None:
    """Measure runs of PLAN with and without workers."""
    if output:
        check_writable(output)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in VARIANTS.items():
            click.echo(name, err=True)
            rows[name] = timed_run(plan, Path(folder) / str(len(rows)), options, num, batch_size)
    record = {
        "machine": describe_machine(),
        "load": os.getloadavg()[0],
        "plan": plan.name,
        "num": num,
        "batch_size": batch_size,
        "variants": rows,
    }
    if output:
        write_record(record, output)
    click.echo(table(HEADINGS, [cells(name, row) for name, row in rows.items()]))


def timed_run(
    plan: Path, folder: Path, options: Sequence[str], num: int, batch_size: int
) -> dict[str, Any]:
    """Run disa-run once; returns seconds, units and memory, as JSON.

    Args:
        folder: the output of the run.
        options: options of disa-run; `{cores}` stands for the number of cores.

    Raises:
        DisaError: the run failed.
    """
    cores = str(len(os.sched_getaffinity(0)))
    settings = [option.format(cores=cores) for option in options]
    sizes = ["--num", str(num), "--batch-size", str(batch_size)]
    code = "from disa.commands.run import main; main()"
    command = [sys.executable, "-c", code, str(plan), "-o", str(folder), *sizes, *settings]
    start = time.perf_counter()
    first: float | None = None
    peaks: dict[int, int] = {}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            done = finished_units(folder)
            if done and first is None:
                first = time.perf_counter() - start
            workers = {int(unit["worker"].rpartition(":")[2]) for unit in done if "worker" in unit}
            for pid in workers or {process.pid}:
                peaks[pid] = max(peaks.get(pid, 0), peak_memory(pid) or 0)
            time.sleep(POLL_SECONDS)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise DisaError(f"the run with {' '.join(settings)} failed: see above")
    done = finished_units(folder)
    return {
        "seconds": seconds,
        "first_unit_seconds": first if first is not None else seconds,
        "generating_seconds": sum(unit["stats"]["seconds"]["total"] for unit in done),
        "units": len(done),
        "images": num,
        "batch_size": batch_size,
        "workers": max(1, len({unit.get("worker") for unit in done})),
        "peak_bytes": max(peaks.values()),
    }


def finished_units(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of the run's log of finished units."""
    try:
        text = (folder / "units.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines() if line]


def cells(name: str, row: Mapping[str, Any]) -> list[str]:
    """A row of the table; rates are measured after the first unit."""
    later = row["seconds"] - row["first_unit_seconds"]
    images = row["images"] - row["batch_size"]
    each = row["generating_seconds"] / row["units"]
    idle = later * row["workers"] - (row["units"] - 1) * each
    return [
        name,
        f"{images / later:.2f}" if later and images else "-",
        f"{row['seconds']:.1f}",
        f"{row['first_unit_seconds']:.1f}",
        str(round(1000 * idle / max(1, row["units"] - 1))),
        f"{row['peak_bytes'] / 2**20:.0f}",
    ]


if __name__ == "__main__":
    main()
