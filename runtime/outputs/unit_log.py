"""units.jsonl: the cost of each finished unit of work, one a line."""

import json
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from ..stats import Stats
from .store import Store

NAME = "units.jsonl"
PART = "units-{}.jsonl"
FLUSH_SECONDS = 30.0
_NAMES = re.compile(r"units(-[0-9a-f]{32})?\.jsonl")


class UnitLog:
    """Lines that are appended during a run.

    In a place without appending (an object store) a new file is written every half minute.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # A line break ends a line that a killed process left incomplete.
        self._buffer = [b"\n"] if store.exists(NAME) else []
        self._flushed = time.monotonic()

    def total(self) -> Stats:
        """The cost of all units. An incomplete line of a killed process is ignored."""
        total = Stats()
        for name in self.names():
            with self._store.read(name) as file:
                for line in file:
                    try:
                        total.add(Stats.from_json(json.loads(line)["stats"]))
                    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                        continue
        return total

    def add(self, stats: Stats, content: Mapping[str, Any]) -> None:
        """Append a line."""
        line = json.dumps({**content, "stats": stats.to_json()})
        self._buffer.append(f"{line}\n".encode())
        if self._store.appends:
            self._append()
        elif time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending lines."""
        if self._buffer and self._store.appends:
            self._append()
        elif self._buffer:
            with self._store.write(PART.format(uuid.uuid4().hex)) as file:
                file.write(b"".join(self._buffer))
            self._buffer.clear()
        self._flushed = time.monotonic()

    def names(self) -> list[str]:
        """The files of the log."""
        return sorted(filter(_NAMES.fullmatch, self._store.top_names()))

    def _append(self) -> None:
        self._store.append(NAME, b"".join(self._buffer))
        self._buffer.clear()
