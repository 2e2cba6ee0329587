"""Records of measurements: where they lie, and what each says of its moment and machine."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from disa.bench.machine import describe_machine, describe_versions

RESULTS = Path(__file__).parent / "results"
Record = dict[str, Any]


def moment() -> dict[str, Any]:
    """The current date and the load of the machine."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def new_record(kind: str) -> Record:
    """A record without results: the date, the machine and the versions of packages."""
    import torch

    return {
        "kind": kind,
        "date": moment()["date"],
        "machine": describe_machine(),
        "versions": {**describe_versions(), "torch": torch.__version__},
    }
