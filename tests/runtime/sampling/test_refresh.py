import time

import pytest

from disa.errors import InvalidRequest
from disa.runtime.sampling.refresh import RefreshPlan, parse_refresh


def full_passes(plan: RefreshPlan, iterations: int) -> list[int]:
    return [iteration for iteration in range(iterations) if plan.is_full(iteration)]


@pytest.mark.parametrize("text", ["9:5", "every 9 after 5", " 9 : 5 ", "EVERY 9 AFTER 5"])
def test_the_first_ones_and_then_every_ninth(text: str) -> None:
    assert full_passes(parse_refresh(text), 25) == [0, 1, 2, 3, 4, 5, 14, 23]


def test_every_one() -> None:
    assert full_passes(parse_refresh("1:0"), 5) == [0, 1, 2, 3, 4]


def test_no_number_of_first_ones() -> None:
    assert full_passes(RefreshPlan(every=3), 8) == [0, 3, 6]
    assert full_passes(RefreshPlan(), 8) == [0]


def test_none_after_the_first_ones() -> None:
    assert full_passes(parse_refresh("0:3"), 8) == [0, 1, 2]


def test_a_list_always_has_the_first() -> None:
    assert full_passes(parse_refresh("2, 5,40"), 8) == [0, 2, 5]


@pytest.mark.parametrize("text", ["", "-1:5", "9:5:1", "1.5:2", "all", "9:", "1,,2", "9" * 7])
def test_what_is_no_plan(text: str) -> None:
    with pytest.raises(InvalidRequest, match="EVERY:FIRST"):
        parse_refresh(text)


@pytest.mark.parametrize(
    "text", ["9{}x", "9{}:5x", "9:{}x", "9 after{}x", "every{}x", "1{},2x", "{}x", "1,2{}x"]
)
def test_long_texts_are_refused_at_once(text: str) -> None:
    """A server parses on its event loop: a megabyte of blanks stopped it for an hour."""
    start = time.process_time()
    with pytest.raises(InvalidRequest, match="EVERY:FIRST"):
        parse_refresh(text.format(" " * 100_000))
    assert time.process_time() - start < 2
