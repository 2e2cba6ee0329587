"""Values that occur in several places of a manifest, checked when they are read."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ...checked_json import Value, matching, text
from .archive import safe_name

NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
MAX_TEXT = 256
"""Most letters in the name of a plan, of a class or of a tensor."""
EMPTY: Mapping[str, Any] = MappingProxyType({})

identifier = matching(NAME, "a name")


def short_text(value: Value) -> str:
    """Text of at most `MAX_TEXT` letters."""
    if len(text(value)) > MAX_TEXT:
        raise value.wrong(f"text of at most {MAX_TEXT} letters")
    return str(value.item)


def member_name(value: Value) -> str:
    """The name of a file inside the plan."""
    if not safe_name(text(value)):
        raise value.wrong("the name of a member")
    return str(value.item)
