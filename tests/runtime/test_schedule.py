import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.runtime.schedule import AnnealedSchedule, Strategy, parse_steps

RECORDED = json.loads((Path(__file__).parents[1] / "golden/schedules.json").read_text())["mar"]


@pytest.mark.parametrize("case", sorted(RECORDED))
def test_recorded_step_counts(case: str) -> None:
    upper, lower, iterations, strategy = case.split(",")
    schedule = AnnealedSchedule(int(upper), int(lower), Strategy(strategy))
    counts = [schedule.steps(i, int(iterations)) for i in range(int(iterations))]
    assert counts == RECORDED[case]


@given(st.integers(2, 1000), st.integers(2, 1000), st.sampled_from(Strategy), st.integers(1, 300))
def test_counts_fall_and_stay_between_the_bounds(
    first: int, second: int, strategy: Strategy, iterations: int
) -> None:
    upper, lower = max(first, second), min(first, second)
    schedule = AnnealedSchedule(upper, lower, strategy)
    counts = [schedule.steps(i, iterations) for i in range(iterations)]
    assert counts == sorted(counts, reverse=True)
    assert min(counts) >= lower
    assert max(counts) <= upper


def test_one_iteration_takes_the_first_count() -> None:
    assert AnnealedSchedule(50, 5, Strategy.LINEAR).steps(0, 1) == 50
    assert AnnealedSchedule(50, 5, Strategy.COSINE).steps(0, 1) == 50
    assert AnnealedSchedule(50, 5, Strategy.CONSTANT).steps(0, 1) == 5


@pytest.mark.parametrize(("upper", "lower"), [(5, 50), (50, 1), (1001, 5), (50, 0)])
def test_impossible_bounds_are_refused(upper: int, lower: int) -> None:
    with pytest.raises(DisaError):
        AnnealedSchedule(upper, lower)


def test_parse_steps() -> None:
    assert parse_steps("50:5") == (50, 5)
    assert parse_steps("100") == (100, 100)
    for wrong in ["", "a:b", "50:", ":5", "50:5:1", "-5", "5.5"]:
        with pytest.raises(DisaError, match="UPPER:LOWER"):
            parse_steps(wrong)
