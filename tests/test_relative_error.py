import numpy as np
import pytest

from disa.relative_error import relative_error


def test_the_difference_is_relative_to_the_expected_values() -> None:
    expected = np.array([3.0, 4.0], np.float32)
    assert relative_error(expected, expected) == 0
    assert relative_error(np.array([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_error(np.array([3.0, 4.5]), expected, origin=3.0) == pytest.approx(0.5)


def test_expected_zeros_do_not_divide() -> None:
    assert relative_error(np.array([0.25]), np.zeros(1)) == 0.25


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_have_an_infinite_error(value: float) -> None:
    assert relative_error(np.array([value]), np.ones(1)) == np.inf


def test_halves_do_not_overflow() -> None:
    large = np.full(1000, 60000, np.float16)
    assert relative_error(large, large) == 0
