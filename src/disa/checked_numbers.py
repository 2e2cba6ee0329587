"""Checks of numbers that come from a caller, whatever library they are of."""

import math
import operator
from typing import Any

from .errors import InvalidRequest


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number from `low`, up to `high` if that is given.

    Args:
        name: what the number is, for the error.

    Raises:
        InvalidRequest: it is not such a number.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        wanted = f"at least {low}" if high is None else f"from {low} to {high}"
        raise InvalidRequest(f"{name} must be a whole number {wanted}, not {repr(value)[:80]}")
    return number


def positive_number(name: str, value: Any, zero: bool = False) -> float:
    """A finite number above 0.

    Args:
        name: what the number is, for the error.
        zero: whether 0 is valid, too.

    Raises:
        InvalidRequest: it is not such a number.
    """
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (0 < number < math.inf or (zero and number == 0)):
        wanted = "a number of at least 0" if zero else "a number above 0"
        raise InvalidRequest(f"{name} must be {wanted}, not {repr(value)[:80]}")
    return number
