"""Calls of graphs, and a lower bound of the time that they take (the floor).

The floor of a call is the longer of two times: its operations at the rate of a large matmul on this
machine, and the bytes of its weights, each read once, at the memory bandwidth of this machine (the
roofline model). Norms, softmax, activations and the VAE are left out, so the floor is never too
high.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """A call of a graph.

    Attributes:
        flops: multiplications and additions.
        weight_bytes: bytes of the weights that it reads.
    """

    flops: float
    weight_bytes: float


@dataclass
class Work:
    """All calls that generate a batch, by part of the model."""

    calls: dict[str, list[Call]] = field(default_factory=dict)

    def add(self, part: str, call: Call, times: int = 1) -> None:
        """Add calls of a part."""
        self.calls.setdefault(part, []).extend([call] * times)

    @property
    def flops(self) -> float:
        return sum(call.flops for calls in self.calls.values() for call in calls)

    @property
    def weight_bytes(self) -> float:
        return sum(call.weight_bytes for calls in self.calls.values() for call in calls)

    def floor(self, rate: float, bandwidth: float) -> dict[str, float]:
        """The floor of each part in seconds, for operations and bytes per second."""
        return {
            part: sum(max(call.flops / rate, call.weight_bytes / bandwidth) for call in calls)
            for part, calls in self.calls.items()
        }
