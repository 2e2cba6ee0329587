"""What a call of a pipeline returns, and what its callback is given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..engines.array_types import Floats
from .generation import Image
from .stats import Stats


@dataclass(frozen=True)
class Result:
    """The result of a pipeline call.

    Attributes:
        images: uint8 [images, height, width, 3 or 1], or a list of PIL images; None if only
            latents were requested, or if the plan cannot decode to pixels.
        latents: fp32 [images, channels, height, width], before the decoder.
        stats: the cost.
    """

    images: Any
    latents: Floats
    stats: Stats


@dataclass(frozen=True)
class Progress:
    """The state of a batch after an AR iteration, for a callback.

    Attributes:
        images: indices of the batch's images in the seed's sequence.
        iteration: finished AR iterations.
        iterations: total AR iterations.
    """

    images: range
    iteration: int
    iterations: int
    _preview: Callable[[], list[Image]]

    def preview(self) -> list[Image]:
        """Previews of the images, each uint8 [height, width, channels].

        Raises:
            DisaError: the plan has no decoder to pixels.
        """
        return self._preview()
