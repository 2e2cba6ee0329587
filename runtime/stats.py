"""The cost of a run."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

LOOP_PARTS = ("backbone", "head")
"""The parts of the model that run in every AR iteration, whatever graphs a family has for them."""
MODEL_PARTS = (*LOOP_PARTS, "decoder")
"""The parts of the model that every family times."""
HOST_PARTS = ("noise", "total")
"""What is timed and is not a part of the model."""


@dataclass
class Stats:
    """Seconds in each part, and the head's work.

    Attributes:
        seconds: wall time by part: `MODEL_PARTS`, `HOST_PARTS`, and further parts of the family.
        images: images generated.
        head_calls: calls of the head graph, the cost that DiSA reduces.
        head_rows: rows of all those calls.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    images: int = 0
    head_calls: int = 0
    head_rows: int = 0

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to `part`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def add(self, other: "Stats") -> None:
        """Add the cost of another run."""
        for part, seconds in other.seconds.items():
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.images += other.images
        self.head_calls += other.head_calls
        self.head_rows += other.head_rows

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """From the result of `to_json`."""
        return cls(
            {part: float(seconds) for part, seconds in dict(content["seconds"]).items()},
            *(int(content[name]) for name in ("images", "head_calls", "head_rows")),
        )

    def to_json(self) -> dict[str, Any]:
        """For the run record; images a second over the total time."""
        total = self.seconds.get("total", 0.0)
        return {
            "images": self.images,
            "images_per_second": self.images / total if total else None,
            "head_calls": self.head_calls,
            "head_rows": self.head_rows,
            "seconds": dict(self.seconds),
        }
