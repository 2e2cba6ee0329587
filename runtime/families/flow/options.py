"""Sampling options of the families that follow a flow."""

from dataclasses import dataclass

from ..options import SamplingOptions


@dataclass(frozen=True, kw_only=True)
class FlowOptions(SamplingOptions):
    """Sampling options of the flow-matching families.

    The guidance scale is that of the last AR iteration. It grows linearly from 1, which is no
    guidance, in the first one; a scale of 1 or less turns guidance off.
    """

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional half."""
        return self.guidance_scale > 1

    def guidance(self, iteration: int, iterations: int) -> float:
        """Guidance scale of AR iteration `iteration`."""
        return 1 + (self.guidance_scale - 1) * iteration / max(1, iterations - 1)
