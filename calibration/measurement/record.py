"""A measurement as JSON, so that other schedules can be fitted without measuring again."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...checked_json import JSONError, Value, integer, list_of, load, optional
from ...engines.array_types import Doubles, Ints
from ...errors import DisaError
from ...files import read_bytes
from .dependence import MAX_TOKENS, Dependence
from .measure import Measurement
from .refresh import RefreshErrors
from .signals import Signal, Signals
from .tradeoff import AdaptivePoint, Tradeoff

MAX_BYTES = 32 << 20
MAX_PLACES = 64
REFRESH_TABLES = ("error", "half_width", "full", "reuse")
DIGITS = 6
"""Significant digits of the numbers that are written."""


def measurement_content(measured: Measurement) -> dict[str, Any]:
    """The entries of a schedule file that `read_measurement` reads."""
    tradeoff = measured.tradeoff
    more: dict[str, Any] = {}
    if measured.backbone is not None:
        more["backbone_seconds"] = rounded(measured.backbone)
    if measured.dependence is not None:
        more["dependence"] = {
            "places": measured.dependence.places.tolist(),
            "error": rounded(measured.dependence.error),
            "half_width": rounded(measured.dependence.half_width),
        }
    if measured.refresh is not None:
        more["refresh_errors"] = {
            "tokens": measured.refresh.tokens.tolist(),
            "places": measured.refresh.places.tolist(),
            **{name: rounded(getattr(measured.refresh, name)) for name in REFRESH_TABLES},
        }
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
        **more,
    }


def as_written(measured: Measurement) -> Measurement:
    """The measurement as read from its file, so that a later fit gives the same result."""
    content = json.loads(json.dumps(measurement_content(measured)))
    return _measurement(Value("the measurement", content))


def rounded(values: Doubles) -> Any:
    """Nested lists of numbers with few digits."""
    if values.ndim > 1:
        return [rounded(row) for row in values]
    return [float(f"{value:.{DIGITS}g}") for value in values]


def read_measurement(path: Path) -> tuple[Measurement, Value]:
    """The measurement in a schedule file, and the whole content.

    Raises:
        DisaError: the file cannot be read, or has no measurement.
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
        root.get("backbone_seconds", optional(lambda value: _positive(value, iterations)), None),
        root.get("dependence", optional(lambda value: _dependence(value, tradeoff)), None),
        root.get("refresh_errors", optional(lambda value: _refresh(value, tradeoff)), None),
    )


def _positive(value: Value, length: int) -> Doubles:
    found = numbers(value)
    if len(found) != length or found.min() < 0:
        raise value.wrong(f"{length} numbers from 0")
    return found


def _refresh(value: Value, tradeoff: Tradeoff) -> RefreshErrors:
    tokens = np.array(value.get("tokens", list_of(integer)), np.int64)
    if not 1 <= len(tokens) <= MAX_TOKENS or tokens.min() < 1:
        raise value.wrong(f"measured for 1 to {MAX_TOKENS} AR iterations of at least one token")
    if tokens.sum() != tradeoff.tokens.sum():
        raise value.wrong("measured for the same number of tokens")
    places = value.get("places", lambda part: _places(part, len(tokens)))
    tables = [value.get(name, list_of(numbers)) for name in ("error", "half_width")]
    if any(len(table) != len(places) or {*map(len, table)} != {len(tokens)} for table in tables):
        raise value.wrong("tables with a row for each place and a number for each AR iteration")
    error, half_width = (np.array(table, np.float64) for table in tables)
    if error.min() < 0:
        raise value.wrong("errors from 0")
    times = [
        value.get(name, lambda part: _positive(part, len(tokens))) for name in ("full", "reuse")
    ]
    return RefreshErrors(tokens, places, error, half_width, *times)


def _places(value: Value, count: int) -> Ints:
    """Places from 0 to `count` - 1."""
    places = np.array(list_of(integer)(value), np.int64)
    if not 1 <= len(places) <= MAX_PLACES or places[0] != 0 or (np.diff(places) < 1).any():
        raise value.wrong(f"1 to {MAX_PLACES} places, ascending from 0")
    if places[-1] != count - 1:
        raise value.wrong(f"places up to {count - 1}")
    return places


def _dependence(value: Value, tradeoff: Tradeoff) -> Dependence:
    tokens = int(tradeoff.tokens.sum())
    if tokens > MAX_TOKENS:
        raise value.wrong(f"of at most {MAX_TOKENS} tokens")
    places = value.get("places", lambda part: _places(part, tokens))
    tables = [value.get(name, list_of(numbers)) for name in ("error", "half_width")]
    if any({len(table), *map(len, table)} != {len(places)} for table in tables):
        raise value.wrong("tables with a row and a column for each place")
    error, half_width = (np.array(table, np.float64) for table in tables)
    if error.min() < 0 or np.tril(error).any():
        raise value.wrong("errors from 0, and 0 up to the diagonal")
    return Dependence(places, error, half_width)


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
