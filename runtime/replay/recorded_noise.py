"""The recorded random numbers of a batch, image by image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...engines.array_types import Floats, Ints
from ..generation import Request
from ..pipeline import Pipeline
from ..sampling.head import Iteration
from ..stats import Stats
from .reference import Difference, RecordedRun, difference


class BatchReplay(Protocol):
    """The random numbers of all images of a recorded run."""

    def order(self, tokens: int) -> Ints:
        """Positions in generation order, [tokens, images]."""
        ...

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, ...]) -> Floats:
        """Noise of an AR iteration, [draws, tokens, images, C], of shape (tokens, images, C)."""
        ...

    def compare(self, iteration: Iteration) -> Difference:
        """Compare the tokens of an AR iteration with the recorded ones."""
        ...


class RecordedNoise:
    """The noise of a recorded run, read once for all its images."""

    def __init__(self, replay: BatchReplay, images: int) -> None:
        self._replay, self._images = replay, images
        self._last: tuple[Any, Floats] | None = None

    def images(self) -> list["RecordedImage"]:
        """The noise of each image."""
        return [RecordedImage(self, image) for image in range(self._images)]

    def order(self, length: int) -> Ints:
        """See `BatchReplay`."""
        return self._replay.order(length)

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, int]) -> Floats:
        """See `BatchReplay`; `shape` is (tokens, C)."""
        key = (iteration, draws, shape)
        if self._last is None or self._last[0] != key:
            tokens, channels = shape
            whole = self._replay.gaussian(iteration, draws, (tokens, self._images, channels))
            self._last = (key, whole)
        return self._last[1]


@dataclass(frozen=True)
class RecordedImage:
    """The noise of one image of a recorded run; see `ImageNoise`."""

    batch: RecordedNoise
    image: int

    def order(self, length: int) -> Ints:
        return self.batch.order(length)[:, self.image]

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, int]) -> Floats:
        return self.batch.gaussian(iteration, draws, shape)[:, :, self.image]


def replayed(
    pipe: Pipeline,
    conditions: Sequence[Any],
    options: Any,
    replay: BatchReplay,
    reference: RecordedRun,
) -> list[Difference]:
    """Replay a recorded run; returns the difference of every AR iteration and of the latents."""
    found: list[Difference] = []

    def compare(done: Iteration) -> None:
        found.append(replay.compare(done))

    noises = RecordedNoise(replay, len(conditions)).images()
    requests = [
        Request(condition, options, noise)
        for condition, noise in zip(conditions, noises, strict=True)
    ]
    outputs = pipe.generate(requests, Stats(), watch=compare)
    latents = np.stack([output.latents for output in outputs])
    return [*found, Difference("latents", None, difference(latents, reference["latents"]))]
