import numpy as np
import pytest

from disa.calibration.measurement.tradeoff import Tradeoff, _affine, _extended


def test_noise_is_not_taken_for_an_error() -> None:
    counts = np.array([2, 4, 8, 16])
    values, deviation = np.array([1.0, 0.5, 0.01, -0.01]), np.full(4, 0.02)
    np.testing.assert_allclose(_extended(values, deviation, counts), [1, 0.5, 0.125, 0.03125])
    nothing = _extended(np.zeros(4), deviation, counts)
    np.testing.assert_allclose(nothing, 0.02 * (2 / counts) ** 2)


def test_error_is_a_mean_over_tokens() -> None:
    counts, tokens = np.arange(2, 51), np.array([1, 2, 5])
    difficulty = np.array([1.0, 0.1, 0.01])
    calls = tokens[:, None] * counts.astype(float)
    tradeoff = Tradeoff(counts, difficulty[:, None] / counts**2.0, calls, calls, tokens, np.ones(3))
    error, cost = tradeoff.of([2] * 3, "calls")
    assert error == pytest.approx((difficulty / 4 * tokens).sum() / tokens.sum())
    assert cost == 2 * tokens.sum()
    assert tradeoff.of([1, 2, 2], "calls") == tradeoff.of([2] * 3, "calls")


def test_more_steps_than_measured_cost_more_and_have_a_smaller_error() -> None:
    """A baseline of 100 steps is not one of 50."""
    counts, tokens = np.arange(2, 51), np.array([1, 2, 5])
    calls = tokens[:, None] * counts.astype(float)
    tradeoff = Tradeoff(counts, np.ones((3, 1)) / counts**2.0, calls, calls, tokens, np.ones(3))
    for steps in ([100, 100, 100], [100, 50, 2]):
        error, cost = tradeoff.of(steps, "calls")
        assert error == pytest.approx((tokens / np.square(steps)).sum() / tokens.sum())
        assert cost == pytest.approx((tokens * steps).sum())


def test_more_calls_do_not_take_less_time() -> None:
    calls, at = np.array([[2.0, 4.0, 8.0]] * 2), np.array([[2.0, 5.0, 8.0]] * 2)
    seconds = np.array([[0.3, 0.5, 0.9], [0.9, 0.5, 0.1]])
    np.testing.assert_allclose(_affine(calls, at, seconds), [[0.3, 0.6, 0.9], [0.5, 0.5, 0.5]])
