"""The result of quantising a plan."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recorded_calls import Differences
from .sensitivity import Selection


@dataclass(frozen=True)
class QuantizedGraph:
    """The result for a graph.

    Attributes:
        selection: its quantised matmuls.
        seconds: time of the recorded calls in fp32 and quantised; zero if not measured.
    """

    name: str
    selection: Selection
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def measured(self) -> bool:
        """Whether the graph was compared with fp32."""
        return self.seconds != (0.0, 0.0)

    @property
    def speedup(self) -> float:
        """How many times faster the quantised graph is."""
        before, after = self.seconds
        return before / after if after else 1.0

    def to_json(self) -> dict[str, Any]:
        """The graph's entry in the manifest."""
        selection = self.selection
        content: dict[str, Any] = {
            "products": len(selection.chosen),
            "left_out": [matmul.node for matmul in selection.left_out],
        }
        if self.measured:
            content |= {"error": selection.error, "speedup": round(self.speedup, 2)}
        return content


@dataclass(frozen=True)
class Quantized:
    """A quantised plan.

    Attributes:
        tokens: differences of tokens that both plans sample from the same state; None if not
            measured.
        refreshed: the same for a cached backbone; None without one.
        refresh: its full passes in that measurement.
    """

    path: Path
    graphs: Sequence[QuantizedGraph]
    tokens: Differences | None
    refreshed: Differences | None = None
    refresh: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The entries for the manifest."""
        content: dict[str, Any] = _distances(self.tokens)
        if self.refresh:
            content["refreshed"] = {"refresh": self.refresh, **_distances(self.refreshed)}
        changed = {graph.name: graph.to_json() for graph in self.graphs if graph.selection.chosen}
        return content | {"graphs": changed}


def _distances(tokens: Differences | None) -> dict[str, float | None]:
    """The differences of tokens, for the manifest."""
    return {
        "token_distance": tokens.distance if tokens else None,
        "token_spread": tokens.spread if tokens else None,
    }
