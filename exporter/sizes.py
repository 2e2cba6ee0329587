"""What the sizes of every model have in common."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import DisaError


def check_sizes(config: type, sizes: Mapping[str, Any], owner: str) -> None:
    """Raise DisaError unless all sizes that are positive numbers by their type are such.

    Args:
        config: a dataclass; its fields of the types int and float are looked at.
        sizes: values of its fields; some may be missing yet.
        owner: whose configuration it is, for the error.
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
