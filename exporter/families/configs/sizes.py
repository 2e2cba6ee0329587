"""Checks of model sizes, shared by all families."""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from ....errors import DisaError


def check_sizes(config: type, sizes: Mapping[str, Any], owner: str) -> None:
    """Check that all sizes with a number type are positive numbers.

    Args:
        config: a dataclass; its fields of the types int and float are checked.
        sizes: values of its fields; some may still be missing.
        owner: name of the configuration, for the error.

    Raises:
        DisaError: a size is not a positive number.
    """
    for field in fields(config):
        if field.name not in sizes:
            continue
        value = sizes[field.name]
        if field.type is int and (type(value) is not int or value <= 0):
            kind = "a positive whole number"
        elif field.type is float and (type(value) not in (int, float) or not 0 < value < math.inf):
            kind = "a positive number"
        else:
            continue
        raise DisaError(f"{owner} {field.name} must be {kind}, not {value!r}")


def check_keys(config: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Check that a configuration has only known keys.

    Args:
        known: the keys in use.
        owner: name of the configuration, for the error.

    Raises:
        DisaError: a key is not known.
    """
    known = sorted(known)
    for key in config:
        if key in known:
            continue
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(known)}"
        raise DisaError(
            f"{owner} has the key {key[:60]!r}, which this family does not have: {hint}"
        )
