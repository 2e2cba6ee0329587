from typing import Any

import numpy as np
import pytest

from disa.checked_numbers import positive_number, whole_number
from disa.errors import InvalidRequest


@pytest.mark.parametrize("value", [2, np.int64(2), np.array(2)])
def test_whole_numbers_of_any_library(value: Any) -> None:
    assert type(whole_number("it", value, 2, 2)) is int


@pytest.mark.parametrize("value", [1, 4, 2.0, "2", None, [2], float("nan")])
def test_what_is_no_such_whole_number(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^it must be a whole number from 2 to 3, not "):
        whole_number("it", value, 2, 3)


def test_a_whole_number_without_an_upper_limit() -> None:
    assert whole_number("it", 10**30, 2) == 10**30
    with pytest.raises(InvalidRequest, match="whole number at least 2, not -1"):
        whole_number("it", -1, 2)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), "1", None, [1.0, 2.0]])
def test_what_is_not_above_zero(value: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^it must be a number above 0, not "):
        positive_number("it", value)


def test_positive_numbers() -> None:
    assert positive_number("it", np.float32(0.5)) == 0.5
    assert positive_number("it", 0, zero=True) == 0
    with pytest.raises(InvalidRequest, match="of at least 0, not nan"):
        positive_number("it", float("nan"), zero=True)
