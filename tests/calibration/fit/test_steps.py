from dataclasses import replace

import numpy as np
import pytest

from disa.calibration.fit.steps import counts_of, fit_to_cost, fit_to_error
from disa.calibration.measurement.tradeoff import Tradeoff
from disa.runtime.sampling.schedule import AnnealedSchedule

COUNTS = np.arange(2, 51)
DIFFICULTY = np.geomspace(1.0, 0.01, 12)
TOKENS = np.array([1, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7])


@pytest.fixture
def tradeoff() -> Tradeoff:
    """Errors of difficulty / counts^2: the best counts are known."""
    error = DIFFICULTY[:, None] / COUNTS**2.0
    calls = TOKENS[:, None] * COUNTS.astype(float)
    return Tradeoff(COUNTS, error, calls, 0.5 + 0.01 * calls, TOKENS, np.ones(12))


def test_steps_follow_the_difficulty(tradeoff: Tradeoff) -> None:
    linear = counts_of(AnnealedSchedule(50, 5), len(TOKENS))
    error, calls = tradeoff.of(linear, "calls")
    steps = fit_to_cost(tradeoff, calls, "calls")
    assert steps == sorted(steps, reverse=True)
    # Equal slopes: 2 * difficulty / count^3 is the same everywhere.
    slopes = 2 * DIFFICULTY / np.array(steps) ** 3.0
    assert slopes.max() / slopes.min() < 1.6
    assert tradeoff.of(steps, "calls")[0] < error
    assert tradeoff.of(steps, "calls")[1] <= calls


def test_the_same_error_for_less(tradeoff: Tradeoff) -> None:
    linear = counts_of(AnnealedSchedule(50, 5), len(TOKENS))
    for kind in ("calls", "time"):
        error, cost = tradeoff.of(linear, kind)
        steps = fit_to_error(tradeoff, error, kind)
        assert tradeoff.of(steps, kind)[0] <= error
        assert tradeoff.of(steps, kind)[1] < cost


def test_what_one_price_leaves_is_spent() -> None:
    """Two counts are far apart: no price makes one iteration take the other of them."""
    error = np.array([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1]])
    calls = np.array([[1.0, 5.0]] * 3)
    two = Tradeoff(np.array([2, 3]), error, calls, calls, np.ones(3, np.int64), np.ones(3))
    assert sorted(fit_to_cost(two, 11.9, "calls")) == [2, 3, 3]
    assert sorted(fit_to_error(two, 0.5, "calls")) == [2, 3, 3]
    assert fit_to_cost(two, 15, "calls") == fit_to_error(two, 0.1001, "calls") == [3, 3, 3]
    assert fit_to_cost(two, 3, "calls") == fit_to_error(two, 1, "calls") == [2, 2, 2]


def test_what_cannot_be_reached(tradeoff: Tradeoff) -> None:
    assert fit_to_error(tradeoff, 0.0, "calls") == [50] * 12
    assert fit_to_cost(tradeoff, 0.0, "calls") == [2] * 12


def test_errors_that_carry_over_weigh_more(tradeoff: Tradeoff) -> None:
    carry = np.geomspace(8.0, 1.0, 12)
    heavy = replace(tradeoff, carry=carry)
    error, _ = heavy.of([2] * 12, "calls")
    weights = carry * TOKENS / (carry * TOKENS).sum()
    assert error == pytest.approx((DIFFICULTY / 4 * weights).sum())
    budget = 12.0 * TOKENS.sum()
    before, after = (fit_to_cost(each, budget, "calls") for each in (tradeoff, heavy))
    assert after[0] > before[0]
    assert after[-1] < before[-1]
    # Equal slopes, each by its weight.
    slopes = 2 * carry * DIFFICULTY / np.array(after) ** 3.0
    assert slopes.max() / slopes.min() < 2.5
