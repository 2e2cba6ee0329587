"""The random numbers of an image."""

import operator
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Floats, Ints
from ...errors import InvalidRequest

ORDER_STREAM, NOISE_STREAM = 0, 1


class ImageNoise(Protocol):
    """The random numbers of one image."""

    def order(self, length: int) -> Ints:
        """The order in which the image's tokens are generated: positions [length]."""
        ...

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, int]) -> Floats:
        """Standard normal noise of an AR iteration, [draws, tokens, C].

        Args:
            iteration: AR iteration, from 0.
            draws: 1 + denoising steps; draw 0 is the noise that denoising starts from.
            shape: (tokens of the iteration, C).
        """
        ...


class PhiloxNoise:
    """Noise that depends only on seed, image index, AR iteration and step.

    Philox is counter-based (Salmon et al., SC 2011): each (seed, image) is a key and each
    iteration a counter, so an image is the same in any batch. Normals are computed from the raw
    bits by Box-Muller, because NumPy guarantees the raw stream of a bit generator for ever,
    but not the stream of its normals.
    """

    def __init__(self, seed: int, image: int) -> None:
        try:
            self.seed = operator.index(seed) % 2**64
        except TypeError:
            raise InvalidRequest(f"a seed must be a whole number, not {repr(seed)[:80]}") from None
        self.image = image

    def order(self, length: int) -> Ints:
        """See `ImageNoise`."""
        return self._bits(ORDER_STREAM, 0, length).argsort(kind="stable")

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, int]) -> Floats:
        """See `ImageNoise`; the first draws do not depend on the number of draws."""
        size = draws * shape[0] * shape[1]
        bits = self._bits(NOISE_STREAM, iteration, (size + 1) // 2)
        return _box_muller(bits)[:size].reshape(draws, *shape)

    def _bits(self, stream: int, iteration: int, count: int) -> npt.NDArray[np.uint64]:
        key = np.array([self.seed, self.image], np.uint64)
        counter = np.array([0, 0, iteration, stream], np.uint64)
        bits: npt.NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(count)
        return bits


def noise_of(
    noises: Sequence[ImageNoise], iteration: int, draws: int, shape: tuple[int, int]
) -> Floats:
    """The noise of several images in one array, [draws, tokens, images, C]."""
    tokens, channels = shape
    together = np.empty((draws, tokens, len(noises), channels), np.float32)
    for column, noise in enumerate(noises):
        together[:, :, column] = noise.gaussian(iteration, draws, shape)
    return together


def _box_muller(bits: npt.NDArray[np.uint64]) -> Floats:
    """Two standard normals from the two halves of each 64-bit word (Box and Muller, 1958)."""
    low, high = (bits & np.uint64(2**32 - 1)).astype(np.float32), (bits >> np.uint64(32))
    radius = np.sqrt(np.float32(-2) * np.log((low + np.float32(0.5)) * np.float32(2.0**-32)))
    angle = high.astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
