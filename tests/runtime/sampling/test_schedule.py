import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.errors import DisaError, InvalidRequest
from disa.runtime.sampling.schedule import (
    MAX_SCHEDULE_BYTES,
    AnnealedSchedule,
    FittedSchedule,
    Strategy,
    as_schedule,
    parse_steps,
    read_schedule,
    schedule_content,
)

RECORDED = json.loads((Path(__file__).parents[2] / "golden/schedules.json").read_text())["mar"]


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


def test_the_published_schedule_is_the_default() -> None:
    assert AnnealedSchedule() == AnnealedSchedule(50, 5, Strategy.LINEAR)


def test_one_iteration_takes_the_first_count() -> None:
    assert AnnealedSchedule(50, 5, Strategy.LINEAR).steps(0, 1) == 50
    assert AnnealedSchedule(50, 5, Strategy.COSINE).steps(0, 1) == 50
    assert AnnealedSchedule(50, 5, Strategy.CONSTANT).steps(0, 1) == 5


@pytest.mark.parametrize(("iterations", "high"), [(1, 1), (2, 1), (4, 2), (5, 2), (63, 31)])
def test_two_stages_change_in_the_middle(iterations: int, high: int) -> None:
    """The iteration in the middle of an odd number is one of the second stage."""
    schedule = AnnealedSchedule(50, 5, Strategy.TWO_STAGE)
    counts = [schedule.steps(index, iterations) for index in range(iterations)]
    assert counts == [50] * high + [5] * (iterations - high)


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
    with pytest.raises(DisaError) as caught:
        parse_steps("x" * 1_000_000)
    assert len(str(caught.value)) < 200, "a server sends it back"


def test_fitted_counts_are_taken_as_they_are() -> None:
    schedule = FittedSchedule((50, 20, 9, 5))
    assert [schedule.steps(i, 4) for i in range(4)] == [50, 20, 9, 5]
    assert [schedule.steps(i, 7) for i in range(7)] == [50, 35, 20, 14, 9, 7, 5]
    assert schedule.steps(0, 1) == 50


@pytest.mark.parametrize(
    ("tokens", "refresh", "iterations"),
    [(None, None, None), ((3, 13), None, 2), (None, (0,), 2), ((3, 13), (0,), 2)],
)
def test_only_a_schedule_of_steps_fits_any_number_of_iterations(
    tokens: tuple[int, ...] | None, refresh: tuple[int, ...] | None, iterations: int | None
) -> None:
    assert FittedSchedule((9, 5), tokens, refresh).iterations == iterations


@given(st.lists(st.integers(2, 1000), min_size=1, max_size=80), st.integers(1, 300))
def test_other_numbers_of_iterations_stay_between_the_counts(
    counts: list[int], iterations: int
) -> None:
    schedule = FittedSchedule(tuple(counts))
    taken = [schedule.steps(i, iterations) for i in range(iterations)]
    assert min(counts) <= min(taken)
    assert max(taken) <= max(counts)
    assert taken[0] == counts[0]
    if iterations > 1:
        assert taken[-1] == counts[-1]


def test_a_schedule_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    schedule = FittedSchedule((7, 3, 2))
    path.write_text(json.dumps({**schedule_content(schedule), "more": [1.5]}))
    assert read_schedule(path) == as_schedule(path) == as_schedule(str(path)) == schedule
    assert as_schedule(schedule_content(schedule)) == schedule
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "{",
        '{"format": "disa-schedule"}',
        '{"format": "disa-schedule", "version": 3, "steps": [5]}',
        '{"format": "disa-schedule", "version": 1, "steps": []}',
        '{"format": "disa-schedule", "version": 1, "steps": [1e999]}',
        '{"format": "disa-schedule", "version": 1, "steps": [' + "9" * 5000 + "]}",
        '{"format": "disa-schedule", "version": 1, "steps": [1]}',
        '{"format": "disa-schedule", "version": 1, "steps": [1001]}',
        '{"format": "disa-schedule", "version": 1, "steps": [5.5]}',
        '{"format": "disa-schedule", "version": 1, "steps": [true]}',
        '{"format": "disa-schedule", "version": 1, "steps": "5"}',
        '{"format": "disa-schedule", "version": 1, "steps": [5], "steps": [6]}',
        '{"format": "other", "version": 1, "steps": [5]}',
        '{"format": "disa-schedule", "version": 1, "steps": [NaN]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_schedule_is_refused_in_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(content)
    with pytest.raises(DisaError, match="disa-calibrate") as caught:
        read_schedule(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_a_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="cannot be read"):
        read_schedule(tmp_path / "none.json")
    (tmp_path / "large.json").write_bytes(b" " * (MAX_SCHEDULE_BYTES + 1))
    with pytest.raises(DisaError, match=r"large\.json: it is larger than 4 MiB"):
        read_schedule(tmp_path / "large.json")
    with pytest.raises(DisaError, match="object with a method steps"):
        as_schedule(5)


def test_what_a_schedule_says_beside_steps(tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    for schedule, version in (
        (FittedSchedule((9, 5)), 1),
        (FittedSchedule((9, 5), tokens=(3, 13)), 2),
        (FittedSchedule((9, 5), refresh=(0, 1)), 2),
        (FittedSchedule((9, 5), (1, 15), (0,)), 2),
    ):
        content = schedule_content(schedule)
        assert content["version"] == version
        path.write_text(json.dumps(content))
        assert read_schedule(path) == schedule
    assert str(schedule) == "fitted 9 5, tokens 1 15, refresh 0"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tokens": [1]}, "steps for 2 AR iterations and tokens for 1"),
        ({"tokens": [0, 16]}, "at least one token"),
        ({"tokens": [-1, 17]}, "at least one token"),
        ({"tokens": [1, 1 << 40]}, "at most 16777216"),
        ({"tokens": [1.5, 2]}, "should be a whole number"),
        ({"tokens": [True, 2]}, "should be a whole number"),
        ({"tokens": "ab"}, "should be a list"),
        ({"tokens": [1] * 70000}, "should be a list"),
        ({"refresh": []}, "from 0 to 1"),
        ({"refresh": [1, 0]}, "ascending"),
        ({"refresh": [0, 2]}, "from 0 to 1"),
        ({"refresh": [-1]}, "from 0 to 1"),
        ({"refresh": ["0"]}, "should be a whole number"),
        ({"version": 3}, "this disa reads 1 and 2"),
    ],
)
def test_what_a_schedule_cannot_say(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps({"format": "disa-schedule", "version": 2, "steps": [9, 5]} | more))
    with pytest.raises(DisaError, match=words):
        read_schedule(path)


def test_schedules_of_numbers_of_any_library() -> None:
    fitted = FittedSchedule(np.array([9, 5]), tokens=[24, 40], refresh=[np.int64(0)])  # type: ignore[arg-type]
    assert fitted == FittedSchedule((9, 5), (24, 40), (0,))
    assert json.loads(json.dumps(schedule_content(fitted)))["steps"] == [9, 5]
    annealed = AnnealedSchedule(np.int64(9), 5, "cosine")  # type: ignore[arg-type]
    assert annealed == AnnealedSchedule(9, 5, Strategy.COSINE)


@pytest.mark.parametrize("counts", [(9.5, 5), ("9", "5"), 9, None])
def test_a_schedule_has_whole_numbers(counts: Any) -> None:
    with pytest.raises(InvalidRequest, match="whole numbers, not"):
        FittedSchedule(counts)
    if isinstance(counts, tuple):
        with pytest.raises(InvalidRequest, match="whole numbers, not"):
            AnnealedSchedule(*counts)
        with pytest.raises(InvalidRequest, match="whole numbers, not"):
            FittedSchedule((9, 5), counts)


def test_a_strategy_that_does_not_exist() -> None:
    with pytest.raises(InvalidRequest, match=r"one of linear, .* not 'quadratic'"):
        AnnealedSchedule(9, 5, "quadratic")  # type: ignore[arg-type]
