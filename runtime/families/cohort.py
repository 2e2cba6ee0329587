"""Samples that share a backbone call, with their arrays stored together.

A cohort that does not change keeps its arrays: nothing is copied from one AR iteration to the next.
If samples join or leave, the remaining ones get a new cohort, and the old one is deleted with its
last reference.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from ...engines.session import Array, Session
from ..generation import Sample


class Cohort:
    """The arrays of samples that share a backbone call.

    Attributes:
        size: number of samples.
        arrays: arrays that change with every AR iteration or cannot be computed again, by name.
        axes: the sample axis of each array.
        constants: the other inputs of the backbone, computed when the cohort is formed.
    """

    def __init__(self, size: int, arrays: dict[str, Array], axes: Mapping[str, int]) -> None:
        self.size, self.arrays, self.axes = size, arrays, axes
        self.constants: dict[str, Array] = {}


@dataclass(eq=False)
class Member(Sample):
    """A sample with a column in the arrays of a cohort."""

    cohort: Cohort = field(default_factory=lambda: Cohort(0, {}, {}))
    column: int = 0


M = TypeVar("M", bound=Member)


@dataclass(frozen=True)
class Group(Generic[M]):
    """Samples with equal keys, in the order of their cohort's columns."""

    samples: Sequence[M]
    cohort: Cohort


def seated(samples: Sequence[M], cohort: Cohort) -> Group[M]:
    """Assign the columns of a new cohort to the samples, in this order."""
    for column, sample in enumerate(samples):
        sample.cohort, sample.column = cohort, column
    return Group(samples, cohort)


def group_by(samples: Sequence[M], key: Callable[[M], Hashable]) -> list[list[M]]:
    """Group samples by key, in the order in which keys first occur."""
    groups: dict[Hashable, list[M]] = {}
    for sample in samples:
        groups.setdefault(key(sample), []).append(sample)
    return list(groups.values())


def brought_together(samples: Sequence[M], session: Session) -> tuple[Group[M], bool]:
    """The samples in one cohort, and whether it is a new one.

    Args:
        session: determines the memory of float arrays.
    """
    columns: dict[int, list[M]] = {}
    for sample in samples:
        columns.setdefault(id(sample.cohort), []).append(sample)
    ordered = [m for members in columns.values() for m in sorted(members, key=_column)]
    first = ordered[0].cohort
    if len(columns) == 1 and len(ordered) == first.size:
        return Group(ordered, first), False
    # Caches that some samples lack are filled again by the next pass.
    shared = set.intersection(*(set(members[0].cohort.axes) for members in columns.values()))
    axes = {name: axis for name, axis in first.axes.items() if name in shared}
    sources = [(members[0].cohort, sorted(map(_column, members))) for members in columns.values()]
    arrays = {
        name: _placed(
            np.concatenate(
                [np.take(np.asarray(c.arrays[name]), which, axis) for c, which in sources], axis
            ),
            session,
        )
        for name, axis in axes.items()
    }
    return seated(ordered, Cohort(len(ordered), arrays, axes)), True


def _column(sample: Member) -> int:
    return sample.column


def _placed(array: np.ndarray[Any, Any], session: Session) -> Array:
    """The array in the memory of the session's outputs; on the host if it has whole numbers."""
    if array.dtype != np.float32:
        return array
    target = session.empty(array.shape, np.float32)
    if isinstance(target, np.ndarray):
        return np.ascontiguousarray(array)
    if len(array):
        target[0 : len(array)] = array
    return target
