"""Records whose entries are measured one at a time and may be measured again."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.runtime.bench_machine import describe_machine, describe_versions
from disa.runtime.bench_report import write_record

Record = dict[str, Any]


def moment() -> dict[str, Any]:
    """When something is measured, and how busy the machine is."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def new_record(kind: str) -> Record:
    """A record without entries: when it is made, on what, and with which packages."""
    import torch

    return {
        "kind": kind,
        "date": moment()["date"],
        "machine": describe_machine(),
        "versions": {**describe_versions(), "torch": torch.__version__},
    }


def read_record(path: Path, kind: str) -> Record:
    """A record of that kind; an empty one if there is no file yet.

    Raises DisaError if the file is something else.
    """
    if not path.exists():
        return {}
    try:
        record: Record = json.loads(path.read_text(encoding="utf-8"))
        found = record["kind"]
        dict(record["entries"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DisaError(f"{path} is no record of {kind}: give another file") from error
    if found != kind:
        raise DisaError(f"{path} is a record of {found}, not of {kind}: give another file")
    return record


def read_entries(path: Path, kind: str) -> dict[str, Record]:
    """The entries of such a record by name; none if there is no file yet."""
    return dict(read_record(path, kind).get("entries", {}))


def write_entries(
    path: Path, kind: str, entries: Mapping[str, Record], order: Sequence[str]
) -> None:
    """Write all entries in the order of their names in `order`."""
    ordered = {name: entries[name] for name in order if name in entries}
    write_record({**new_record(kind), "entries": ordered}, path)


def choose(only: str | None, known: Sequence[str]) -> list[str]:
    """The names of `--only NAME,...`, or all; DisaError for one that is not known."""
    if only is None:
        return list(known)
    chosen = [name.strip() for name in only.split(",")]
    for name in chosen:
        if name not in known:
            raise DisaError(f"there is no {name or 'empty name'}: choose of {', '.join(known)}")
    return chosen
