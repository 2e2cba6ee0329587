"""Samples that join, leave and stay keep their own columns."""

from typing import Any

import numpy as np

from disa.runtime.families.cohort import Cohort, Member, brought_together, group_by, seated
from disa.runtime.generation import Request


class Host:
    """A session whose arrays live on the host."""

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)


class Elsewhere(Host):
    """A session whose arrays are no arrays of NumPy."""

    class Far:
        def __init__(self, shape: tuple[int, ...]) -> None:
            self.content = np.full(shape, np.nan, np.float32)

        def __setitem__(self, place: slice, values: np.ndarray) -> None:
            self.content[place] = values

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        return self.Far(shape)


def cohort(first: int, size: int, extra: bool = False) -> list[Member]:
    """Samples whose arrays hold their number."""
    numbers = np.arange(first, first + size)
    arrays: dict[str, Any] = {
        "tokens": np.tile(numbers.astype(np.float32)[None, :, None], (4, 1, 2)),
        "positions": np.tile(numbers, (4, 1)),
    }
    axes = {"tokens": 1, "positions": 1}
    if extra:
        arrays["cache"], axes["cache"] = numbers.astype(np.float32), 0
    samples = [Member(Request(int(n), None, None), 8) for n in numbers]  # type: ignore[arg-type]
    seated(samples, Cohort(size, arrays, axes))
    return samples


def numbers_in(samples: list[Member]) -> list[float]:
    return [sample.cohort.arrays["tokens"][0, sample.column, 0] for sample in samples]


def test_those_who_stay_together_keep_their_arrays() -> None:
    samples = cohort(0, 3)
    group, new = brought_together(samples[::-1], Host())  # type: ignore[arg-type]
    assert not new
    assert group.cohort is samples[0].cohort
    assert list(group.samples) == samples


def test_joining_and_leaving() -> None:
    old, late = cohort(0, 3), cohort(10, 2)
    chosen = [late[1], old[2], old[0]]
    group, new = brought_together(chosen, Host())  # type: ignore[arg-type]
    assert new
    assert group.cohort.size == 3
    assert [sample.request.condition for sample in group.samples] == [11, 0, 2]
    assert numbers_in(list(group.samples)) == [11, 0, 2]
    positions = group.cohort.arrays["positions"]
    assert positions[3].tolist() == [11, 0, 2]
    assert positions.dtype == np.int64
    assert old[1].cohort.size == 3  # Who was left behind keeps what there was.
    assert numbers_in([old[1]]) == [1]


def test_one_of_a_cohort_gets_its_own() -> None:
    samples = cohort(5, 2)
    group, new = brought_together(samples[1:], Host())  # type: ignore[arg-type]
    assert new
    assert group.cohort.arrays["tokens"].shape == (4, 1, 2)
    assert numbers_in([samples[1]]) == [6]


def test_what_not_all_have_is_left_out() -> None:
    group, _ = brought_together([*cohort(0, 1), *cohort(1, 1, extra=True)], Host())  # type: ignore[arg-type]
    assert group.cohort.arrays.keys() == {"tokens", "positions"}
    both = [*cohort(0, 1, extra=True), *cohort(7, 1, extra=True)]
    group, _ = brought_together(both, Host())  # type: ignore[arg-type]
    assert group.cohort.arrays["cache"].tolist() == [0, 7]


def test_floats_go_where_the_session_keeps_them() -> None:
    group, _ = brought_together([*cohort(0, 1), *cohort(4, 1)], Elsewhere())  # type: ignore[arg-type]
    tokens: Any = group.cohort.arrays["tokens"]
    assert isinstance(tokens, Elsewhere.Far)
    assert tokens.content[3, :, 1].tolist() == [0, 4]
    assert isinstance(group.cohort.arrays["positions"], np.ndarray)


def test_groups_come_in_the_order_of_their_first() -> None:
    samples = cohort(0, 5)
    groups = group_by(samples, lambda sample: sample.request.condition % 2)
    assert [[s.request.condition for s in group] for group in groups] == [[0, 2, 4], [1, 3]]
