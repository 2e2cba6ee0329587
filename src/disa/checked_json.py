"""Reads untrusted JSON value by value, with a check for every value."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

_MAX_DEPTH = 16
_MAX_ITEMS = 65536
_MAX_TEXT = 65536
_MAX_INTEGER = 2**53
_MAX_WHERE = 120
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

T = TypeVar("T")


class JSONError(Exception):
    """The JSON is not as expected; the message says where."""


@dataclass(frozen=True)
class Value:
    """A JSON value and a description of its position for messages."""

    where: str
    item: Any

    def get(self, key: str, check: "Callable[[Value], T]", *default: T) -> T:
        """The checked entry of an object, or `default` if one is given and the entry is missing.

        Raises:
            JSONError: the entry does not pass the check, or is missing without a default.
        """
        items = any_object(self)
        if key in items:
            return check(self.inside(key, items[key]))
        if default:
            return default[0]
        raise JSONError(f"{self.where} lacks {key}")

    def inside(self, key: str, item: Any) -> "Value":
        """A value inside this value."""
        return Value(f"{key[:_MAX_WHERE]} in {self.where}", item)

    def wrong(self, expected: str) -> JSONError:
        return JSONError(f"{self.where} should be {expected}")


class _Unfit(Exception):
    """Valid JSON that is refused."""


def load(data: bytes, what: str) -> Value:
    """Parse UTF-8 JSON that is finite, not deeply nested, and has no control characters and no
    duplicate names.

    Args:
        what: what the data is; messages begin with it.

    Raises:
        JSONError: the data is not such JSON; the message says why.
    """
    try:
        item = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
        )
        _check_scalars(item, _MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise JSONError(f"{what} is not valid JSON") from error
    except _Unfit as error:
        raise JSONError(f"{what} has {error}") from error
    return Value(what, item)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    items = dict(pairs)
    if len(items) != len(pairs):
        raise _Unfit("a duplicate name")
    return items


def _no_constant(_constant: str) -> None:
    raise _Unfit("a number that is not finite")


def _check_scalars(item: Any, depth: int) -> None:
    if depth < 0:
        raise _Unfit("too many nested levels")
    if isinstance(item, dict):
        for key, value in item.items():
            _check_scalars(key, depth - 1)
            _check_scalars(value, depth - 1)
    elif isinstance(item, list):
        for value in item:
            _check_scalars(value, depth - 1)
    elif isinstance(item, float) and not math.isfinite(item):
        raise _Unfit("a number that is not finite")
    elif isinstance(item, int) and abs(item) > _MAX_INTEGER:
        raise _Unfit("a number that is too large")
    elif isinstance(item, str) and _UNFIT.search(item):
        raise _Unfit("text with control characters")


def any_object(value: Value) -> Mapping[str, Any]:
    """Any object, unchecked."""
    if not isinstance(value.item, dict):
        raise value.wrong("an object")
    return value.item


def integer(value: Value) -> int:
    """A whole number."""
    if not isinstance(value.item, int) or isinstance(value.item, bool):
        raise value.wrong("a whole number")
    return value.item


def size(value: Value) -> int:
    """A whole number of at least 0."""
    number = integer(value)
    if number < 0:
        raise value.wrong("a size")
    return number


def boolean(value: Value) -> bool:
    """True or false."""
    if not isinstance(value.item, bool):
        raise value.wrong("true or false")
    return value.item


def text(value: Value) -> str:
    """Text."""
    if not isinstance(value.item, str) or len(value.item) > _MAX_TEXT:
        raise value.wrong("text")
    return value.item


def matching(pattern: re.Pattern[str], what: str) -> Callable[[Value], str]:
    """Text that matches a pattern; errors call it `what`."""

    def check(value: Value) -> str:
        if not pattern.fullmatch(text(value)):
            raise value.wrong(what)
        return str(value.item)

    return check


def choice(*allowed: str) -> Callable[[Value], str]:
    """One of the allowed texts."""

    def check(value: Value) -> str:
        if value.item not in allowed:
            raise value.wrong("one of " + ", ".join(allowed))
        return str(value.item)

    return check


def optional(check: Callable[[Value], T]) -> Callable[[Value], T | None]:
    """A value that passes `check`, or null."""
    return lambda value: None if value.item is None else check(value)


def list_of(check: Callable[[Value], T]) -> Callable[[Value], tuple[T, ...]]:
    """A list whose items pass `check`."""

    def check_all(value: Value) -> tuple[T, ...]:
        if not isinstance(value.item, list) or len(value.item) > _MAX_ITEMS:
            raise value.wrong("a list")
        return tuple(check(value.inside(f"item {i}", x)) for i, x in enumerate(value.item))

    return check_all


def table_of(check: Callable[[str, Value], T]) -> Callable[[Value], Mapping[str, T]]:
    """An object whose entries pass `check`, which receives the key and the value."""

    def check_all(value: Value) -> Mapping[str, T]:
        return MappingProxyType(
            {key: check(key, value.inside(key, item)) for key, item in any_object(value).items()}
        )

    return check_all
