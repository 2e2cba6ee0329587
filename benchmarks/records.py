"""Records of measurements, clocks, and the option `--only` of the benchmarks."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from disa.bench.machine import describe_machine, describe_versions
from disa.bench.report import write_record
from disa.errors import DisaError

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]

Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks in seconds; `cpu` counts the time of all threads of this process."""


def least(work: Callable[[], object], clock: Clock, tries: int) -> float:
    """The shortest time of several calls in seconds, after one call that is not measured."""
    work()
    times = []
    for _ in range(tries):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def moment() -> dict[str, Any]:
    """The current date and the load of the machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def new_record(kind: str) -> Record:
    """A record without entries: the date, the machine and the versions of packages."""
    import torch

    return {
        "kind": kind,
        "date": moment()["date"],
        "machine": describe_machine(),
        "versions": {**describe_versions(), "torch": torch.__version__},
    }


def read_record(path: Path, kind: str) -> Record:
    """Read a record; returns an empty one if there is no file yet.

    Raises:
        DisaError: the file is not a record of this kind.
    """
    if not path.exists():
        return {}
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        found = record["kind"]
        dict(record["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DisaError(f"{path} is not a record of {kind}: give another file") from error
    if found != kind:
        raise DisaError(f"{path} is a record of {found}, not of {kind}: give another file")
    return record


def read_entries(path: Path, kind: str) -> dict[str, Record]:
    """Read the entries of a record by name; none if there is no file yet."""
    return dict(read_record(path, kind).get("entries", {}))


def write_entries(
    path: Path, kind: str, entries: Mapping[str, Record], order: Sequence[str]
) -> None:
    """Write all entries in the order of their names in `order`."""
    ordered = {name: entries[name] for name in order if name in entries}
    write_record({**new_record(kind), "entries": ordered}, path)


def choose(only: str | None, known: Sequence[str]) -> list[str]:
    """The names in `--only NAME,...`, or all.

    Raises:
        DisaError: a name is not known.
    """
    if only is None:
        return list(known)
    chosen = [name.strip() for name in only.split(",")]
    for name in chosen:
        if name not in known:
            raise DisaError(f"there is no {name or 'empty name'}: choose from {', '.join(known)}")
    return chosen
