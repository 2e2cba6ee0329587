"""What the pages share: records by kind, and what is said of the machine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from disa.errors import DisaError

Record = Mapping[str, Any]


def read_results(folder: Path) -> list[Record]:
    """All records of a folder in the order of their names; DisaError for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DisaError(f"{path} is not JSON ({error}): measure again") from error
    return found


def of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    """Those records of a kind."""
    return [record for record in records if record.get("kind") == kind]


def notes(path: Path) -> list[str]:
    """What was written by hand for a page, if anything."""
    return [path.read_text(encoding="utf-8").strip()] if path.exists() else []


def hardware(record: Record) -> str:
    """The machine and the versions of what ran on it."""
    machine, versions = record["machine"], record["versions"]
    parts = [machine["processor"], f"{machine['cores']} cores"]
    if "memory_bytes" in machine:
        parts.append(f"{machine['memory_bytes'] / (1 << 30):.0f} GiB")
    parts += [f"{name} {versions[name]}" for name in ("onnxruntime", "torch") if name in versions]
    return ", ".join(parts)


def machine_of(record: Record) -> str:
    """The machine, how busy it was, and when."""
    machine = record["machine"]
    return (
        f"{hardware(record)}, {record['date']}, load average {machine['load']} before and "
        f"{machine['load_after']} after"
    )


def count(number: int, what: str) -> str:
    """`2 threads`, `1 thread`."""
    return f"{number} {what}" + ("" if number == 1 else "s")
