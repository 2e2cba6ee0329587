"""Keys and values of prompts, shared by the images of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engines.array_types import Ints
from ....engines.session import Array

Rows = tuple[int, ...]

PROMPT_AXIS, LENGTH_AXIS = 1, 3


@dataclass(frozen=True, eq=False)
class PromptCache:
    """The language model's keys and values of some prompts.

    Attributes:
        arrays: keys and values, [layers, prompts, heads, prompt_length, head_dim].
        length: number of tokens of each prompt without padding, [prompts].
    """

    arrays: Mapping[str, Array] = field(default_factory=dict)
    length: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def joined(cls, used: Sequence[tuple["PromptCache", Rows]]) -> tuple["PromptCache", list[Rows]]:
        """One cache of all used prompts, padded to the longest, each stored once.

        Args:
            used: for each image, the cache and rows of its prompts.

        Returns:
            The cache, and the rows of each image's prompts in it.
        """
        caches = {id(cache): cache for cache, _ in used}
        wanted = {
            key: sorted({row for cache, rows in used if id(cache) == key for row in rows})
            for key in caches
        }
        place: dict[tuple[int, int], int] = {}
        for key, rows in wanted.items():
            for row in rows:
                place[key, row] = len(place)
        longest = max(int(caches[key].length[rows].max()) for key, rows in wanted.items())
        first = next(iter(caches.values()))
        arrays = {
            name: np.concatenate(
                [_padded(caches[key].arrays[name], rows, longest) for key, rows in wanted.items()],
                axis=PROMPT_AXIS,
            )
            for name in first.arrays
        }
        length = np.concatenate([caches[key].length[rows] for key, rows in wanted.items()])
        return cls(arrays, length), [
            tuple(place[id(cache), row] for row in rows) for cache, rows in used
        ]


def _padded(array: Array, rows: Sequence[int], length: int) -> npt.NDArray[Any]:
    """Some prompts of a cache, cut or padded with zeros to a length."""
    chosen = np.take(np.asarray(array), rows, axis=PROMPT_AXIS)[:, :, :, :length]
    padding = [(0, 0)] * chosen.ndim
    padding[LENGTH_AXIS] = (0, length - chosen.shape[LENGTH_AXIS])
    return np.pad(chosen, padding)
