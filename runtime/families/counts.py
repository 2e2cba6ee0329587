"""Whole numbers of a plan's manifest, checked before use."""

from collections.abc import Mapping, Sequence
from typing import Any

from ...engines.plan.plan import Plan
from ...errors import DisaError

LARGEST = 1 << 24
"""Upper limit of all model sizes and of the numbers of tokens and classes."""


def read_count(plan: Plan, section: str, *keys: str) -> int:
    """A positive number in the manifest.

    Args:
        section: "model" or "tokens".
        keys: the entry of that section, and optionally an entry of that entry.

    Raises:
        DisaError: it is missing or is not a positive number.
    """
    return _checked(plan, [_entry(plan, section, keys)], section, keys)[0]


def read_counts(plan: Plan, section: str, *keys: str) -> list[int]:
    """A list of at least one such number."""
    return _checked(plan, _entry(plan, section, keys), section, keys)


def _entry(plan: Plan, section: str, keys: Sequence[str]) -> Any:
    found: Any = plan.manifest.model if section == "model" else plan.manifest.tokens
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _checked(plan: Plan, found: Any, section: str, keys: Sequence[str]) -> list[int]:
    if not isinstance(found, list) or not found or not all(map(_usable, found)):
        raise DisaError(
            f"{plan.path}: its manifest has no usable {'.'.join(keys)} in {section}: "
            "export the checkpoint again"
        )
    return found


def _usable(number: Any) -> bool:
    return type(number) is int and 1 <= number <= LARGEST
