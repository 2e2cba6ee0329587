"""Where a token loop takes its random numbers from."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ORDER_STREAM, NOISE_STREAM = 0, 1


class NoiseSource(Protocol):
    """The random numbers of a batch of images."""

    def order(self, tokens: int) -> Ints:
        """The order in which each image's tokens are generated: positions [tokens, batch]."""
        ...

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, ...]) -> Floats:
        """Standard normal noise of an AR iteration, [draws, tokens, batch, ...].

        Args:
            iteration: AR iteration, from 0.
            draws: 1 + denoising steps; draw 0 is the noise that denoising starts from.
            shape: (tokens of the iteration, batch, further axes).
        """
        ...


class PhiloxNoise:
    """Noise that depends on seed, image index, AR iteration and step alone.

    Philox is counter-based (Salmon et al., SC 2011): each (seed, image) is a key and each
    iteration a counter, so an image is the same whatever batch it is drawn in. Normals
    come from the raw bits by Box-Muller, because NumPy promises the raw stream of a bit
    generator for ever, but not the stream of its normals.
    """

    def __init__(self, seed: int, images: Sequence[int]) -> None:
        self.seed = seed % 2**64
        self.images = list(images)

    def order(self, tokens: int) -> Ints:
        keys = [self._bits(image, ORDER_STREAM, 0, tokens) for image in self.images]
        return np.stack(keys, axis=1).argsort(axis=0, kind="stable")

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, ...]) -> Floats:
        tokens, batch, *rest = shape
        assert batch == len(self.images)
        one = (draws, tokens, *rest)
        size = int(np.prod(one))
        noise = np.empty((draws, tokens, batch, *rest), np.float32)
        for index, image in enumerate(self.images):
            bits = self._bits(image, NOISE_STREAM, iteration, (size + 1) // 2)
            noise[:, :, index] = _box_muller(bits)[:size].reshape(one)
        return noise

    def _bits(self, image: int, stream: int, iteration: int, count: int) -> npt.NDArray[np.uint64]:
        key = np.array([self.seed, image], np.uint64)
        counter = np.array([0, 0, iteration, stream], np.uint64)
        bits: npt.NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw(count)
        return bits


def _box_muller(bits: npt.NDArray[np.uint64]) -> Floats:
    """Two standard normals from the two halves of each 64-bit word (Box and Muller, 1958)."""
    low, high = (bits & np.uint64(2**32 - 1)).astype(np.float32), (bits >> np.uint64(32))
    radius = np.sqrt(np.float32(-2) * np.log((low + np.float32(0.5)) * np.float32(2.0**-32)))
    angle = high.astype(np.float32) * np.float32(2 * np.pi * 2.0**-32)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
