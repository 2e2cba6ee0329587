"""The selection of images that a run generates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ...errors import DisaError

MAX_INDEX = 2**63 - 1


@dataclass(frozen=True)
class ImageRow:
    """One image.

    Attributes:
        index: its index in the seed's sequence, from which its file name is derived.
        condition: class number or prompt.
        seed: with the index, it determines the noise.
    """

    index: int
    condition: int | str
    seed: int


@dataclass(frozen=True)
class Selection:
    """The images of a run in order. The position of an image is its place in this order.

    Attributes:
        indices: all different.
        conditions: class number or prompt of each image.
        seeds: one for each image, or one for all.
    """

    indices: Sequence[int]
    conditions: Sequence[int | str]
    seeds: int | Sequence[int]

    @classmethod
    def of_seed(
        cls, conditions: Sequence[int | str], seed: int, first_image: int = 0
    ) -> "Selection":
        """Consecutive images of one seed."""
        return cls(range(first_image, first_image + len(conditions)), conditions, seed)

    def __len__(self) -> int:
        return len(self.conditions)

    def rows(self, start: int, stop: int) -> list[ImageRow]:
        """The images at the positions from start up to stop."""
        return [
            ImageRow(
                self.indices[position],
                self.conditions[position],
                self.seeds if isinstance(self.seeds, int) else self.seeds[position],
            )
            for position in range(start, min(stop, len(self)))
        ]

    def position(self, index: int) -> int | None:
        """The position of an image; None if it is not selected."""
        if isinstance(self.indices, range):
            return index - self.indices.start if index in self.indices else None
        return self._positions.get(index)

    @cached_property
    def _positions(self) -> Mapping[int, int]:
        return {index: position for position, index in enumerate(self.indices)}

    def differences(self, other: "Selection") -> list[str]:
        """The properties that differ between two selections at their common positions."""
        shared = min(len(self), len(other))
        differ = []
        if list(self.indices[:shared]) != list(other.indices[:shared]):
            differ.append("image numbers")
        if list(self.conditions[:shared]) != list(other.conditions[:shared]):
            differ.append("classes" if isinstance(self.conditions[0], int) else "prompts")
        if self._seeds(shared) != other._seeds(shared):
            differ.append("seed" if isinstance(self.seeds, int) else "seeds")
        return differ

    def _seeds(self, count: int) -> int | list[int]:
        return self.seeds if isinstance(self.seeds, int) else list(self.seeds[:count])

    def to_json(self) -> dict[str, Any]:
        """For the run record: consecutive indices as the first one; a single seed is left out."""
        content: dict[str, Any] = {"conditions": list(self.conditions)}
        if isinstance(self.indices, range):
            content["first_image"] = self.indices.start
        else:
            content["indices"] = list(self.indices)
        if not isinstance(self.seeds, int):
            content["seeds"] = list(self.seeds)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], seed: Any) -> "Selection":
        """The selection in the result of `to_json`.

        Args:
            seed: the seed of all images, if the record has no list of seeds.

        Raises:
            ValueError, TypeError, KeyError: `content` is not such a result.
        """
        conditions = content["conditions"]
        if not isinstance(conditions, list) or not conditions:
            raise TypeError("conditions")
        seeds = content.get("seeds", seed)
        if "indices" in content:
            indices: Sequence[int] = content["indices"]
        else:
            first = content.get("first_image", 0)
            _check_integers([first])
            indices = range(first, first + len(conditions))
        _check_integers(indices)
        _check_integers([seeds] if isinstance(seeds, int) else seeds)
        lengths = {len(conditions), len(indices)}
        if not isinstance(seeds, int):
            lengths.add(len(seeds))
        kinds = {type(condition) for condition in conditions}
        if len(lengths) > 1 or kinds not in ({int}, {str}) or len(set(indices)) < len(indices):
            raise ValueError("the lists have different lengths")
        return cls(indices, conditions, seeds)


def _check_integers(values: Any) -> None:
    if isinstance(values, range):
        return
    if not isinstance(values, list) or any(
        type(value) is not int or not 0 <= value <= MAX_INDEX for value in values
    ):
        raise TypeError("not whole numbers")


def check_indices(indices: Sequence[int]) -> None:
    """Check that all image numbers are different.

    Raises:
        DisaError: two are equal.
    """
    seen: set[int] = set()
    for index in indices:
        if index in seen:
            raise DisaError(f"image {index} is selected twice: use each number once")
        seen.add(index)
