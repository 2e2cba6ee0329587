"""The magnitudes of tensors, and the ranges that quantise them with the smallest error."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Doubles, Ints

_MANTISSA_BITS = 4
_SHIFT = 23 - _MANTISSA_BITS
_BINS = 1 << (8 + _MANTISSA_BITS)
_EDGES = (np.arange(_BINS, dtype=np.uint32) << _SHIFT).view(np.float32)


@dataclass
class Magnitudes:
    """A histogram of a tensor's magnitudes, with 16 bins for each power of two.

    The bins are the upper bits of a float, so arrays of any scale are added in one pass.

    Attributes:
        counts: number of values in each bin.
        largest: the largest magnitude.
        finite: whether all values were finite.
    """

    counts: Ints = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    largest: float = 0.0
    finite: bool = True

    def add(self, values: npt.NDArray[Any]) -> None:
        """Count the values of an array."""
        magnitudes = np.abs(np.ascontiguousarray(values, np.float32)).ravel()
        if not magnitudes.size:
            return
        largest = float(magnitudes.max())
        if not np.isfinite(largest):
            self.finite = False
            return
        self.largest = max(self.largest, largest)
        bins = magnitudes.view(np.uint32) >> _SHIFT
        self.counts += np.bincount(bins, minlength=_BINS)

    @property
    def seen(self) -> bool:
        """Whether there was a value other than zero."""
        return self.largest > 0

    def integer_range(self, levels: int = 127) -> float:
        """The magnitude that becomes the integer `levels`; larger ones are clipped to it.

        It minimises the expected squared error: step**2 / 12 inside the range T, where the step is
        T / levels, and (|x| - T)**2 beyond.
        """
        if not self.seen:
            return 1.0
        used = np.flatnonzero(self.counts)
        first, last = int(used[0]), int(used[-1])
        count = self.counts[first : last + 1].astype(np.float64)
        centre = (_EDGES[first : last + 1].astype(np.float64) + _upper(first, last)) / 2
        # Values beyond each candidate, which is the upper edge of a bin; all higher bins are
        # clipped.
        beyond = [_above(count * centre**power) for power in (0, 1, 2)]
        ranges = np.minimum(_upper(first, last), self.largest)
        clipped = beyond[2] - 2 * ranges * beyond[1] + ranges**2 * beyond[0]
        inside = (count.sum() - beyond[0]) * (ranges / levels) ** 2 / 12
        best = int(np.argmin(clipped + inside))
        return float(ranges[best])


def _upper(first: int, last: int) -> Doubles:
    return _EDGES[first + 1 : last + 2].astype(np.float64)


def _above(values: Doubles) -> Doubles:
    """For each entry the sum of all later entries."""
    return np.append(np.cumsum(values[::-1])[::-1][1:], 0.0)
