"""A measurement as JSON, so that other schedules can be fitted to it without measuring again."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engines.checked_json import JSONError, Value, integer, list_of, load
from ..errors import DisaError
from ..files import read_bytes
from .fit import AdaptivePoint, Tradeoff
from .measure import Measurement
from .signals import Signal, Signals

Doubles = npt.NDArray[np.float64]

MAX_BYTES = 32 << 20
DIGITS = 6
"""Significant digits of what is written."""


def measurement_content(measured: Measurement) -> dict[str, Any]:
    """What `read_measurement` reads, for a schedule file."""
    tradeoff = measured.tradeoff
    return {
        "images": measured.images,
        "tightness": measured.tightness,
        "signals": measured.signals.to_json(),
        "adaptive": [vars(point) for point in measured.adaptive],
        "tradeoff": {
            "first_count": int(tradeoff.counts[0]),
            "tokens": tradeoff.tokens.tolist(),
            "carry": rounded(tradeoff.carry),
            "error": rounded(tradeoff.error),
            "calls": rounded(tradeoff.calls),
            "seconds": rounded(tradeoff.seconds),
        },
    }


def rounded(values: Doubles) -> Any:
    """Nested lists of numbers with few digits."""
    if values.ndim > 1:
        return [rounded(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") for value in values]


def read_measurement(path: Path) -> tuple[Measurement, Value]:
    """The measurement in a schedule file, and the whole content.

    Raises:
        DisaError: the file cannot be read, or holds no measurement.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        root = load(data, "the measurement")
        return _measurement(root), root
    except JSONError as error:
        raise DisaError(f"{path}: {error}: give a file that disa-calibrate has written") from error


def _measurement(root: Value) -> Measurement:
    tradeoff = root.get("tradeoff", _tradeoff)
    iterations = len(tradeoff.tokens)
    signals = root.get("signals", lambda value: _signals(value, iterations))
    return Measurement(
        root.get("images", integer),
        root.get("tightness", number),
        signals,
        tradeoff,
        root.get("adaptive", list_of(_point)),
    )


def _tradeoff(value: Value) -> Tradeoff:
    tokens = np.array(value.get("tokens", list_of(integer)), np.int64)
    carry = value.get("carry", numbers)
    tables = [value.get(name, list_of(numbers)) for name in ("error", "calls", "seconds")]
    counts = len(tables[0][0]) if tables[0] else 0
    lengths = {len(row) for table in tables for row in table}
    if len(tokens) < 1 or (tokens < 1).any() or lengths != {counts} or counts < 1:
        raise value.wrong("tables with a number for each step count")
    if {len(table) for table in tables} != {len(tokens)} or len(carry) != len(tokens):
        raise value.wrong("tables with a row for each AR iteration")
    first = value.get("first_count", integer)
    error, calls, seconds = (np.array(table, np.float64) for table in tables)
    if min(error.min(), calls.min(), seconds.min(), carry.min()) <= 0 or first < 1:
        raise value.wrong("positive numbers")
    return Tradeoff(np.arange(first, first + counts), error, calls, seconds, tokens, carry)


def _signals(value: Value, iterations: int) -> Signals:
    def signal(part: Value) -> Signal:
        mean, half_width = part.get("mean", numbers), part.get("half_width", numbers)
        if not len(mean) == len(half_width) == iterations:
            raise part.wrong(f"numbers for {iterations} AR iterations")
        return Signal(mean, half_width)

    return Signals(*(value.get(name, signal) for name in Signals.__dataclass_fields__))


def _point(value: Value) -> AdaptivePoint:
    return AdaptivePoint(*(value.get(name, number) for name in AdaptivePoint.__dataclass_fields__))


def number(value: Value) -> float:
    """A number."""
    if not isinstance(value.item, int | float) or isinstance(value.item, bool):
        raise value.wrong("a number")
    return float(value.item)


def numbers(value: Value) -> Doubles:
    """A list of numbers."""
    return np.array(list_of(number)(value), np.float64)
