"""Classes by number or by name."""

import operator
import re
from collections import defaultdict
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ....errors import DisaError, InvalidRequest
from ....files import read_text, text_lines

MAX_BYTES = 1 << 22
MAX_NAME = 1000
"""Most characters of a class name; ImageNet's longest has 121."""


def read_labels(path: Path, classes: int | None = None) -> list[str]:
    """Read class names from a text file, one a line, the first for class 0.

    Args:
        classes: expected number of names; None if unknown.

    Raises:
        DisaError: the file is not such a file, or has another number of names.
    """
    names = [line.strip() for line in text_lines(read_text(path, MAX_BYTES))]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DisaError(f"{path}: it must have one class name a line")
    if classes not in (None, len(names)):
        raise DisaError(
            f"{path}: it has {len(names)} class names, but the model has {classes} classes: write "
            "one a line, the first for class 0"
        )
    for number, name in enumerate(names):
        if len(name) > MAX_NAME or not name.isprintable():
            raise DisaError(
                f"{path}: the name of class {number} must be at most {MAX_NAME} printable "
                "characters: correct that line"
            )
    return names


def find_class(wanted: Any, classes: int, names: Sequence[str] | None) -> int:
    """The number of a class, from its number (also NumPy's) or its name (case is ignored).

    Each synonym of a name such as "sports car, sport car" is accepted.

    Raises:
        InvalidRequest: there is no such class, or several have the name.
    """
    if not isinstance(wanted, str | bytes):
        wanted = _number(wanted)
    text = str(wanted).strip()
    if re.fullmatch(r"-?\d{1,18}", text, re.ASCII):
        if 0 <= int(text) < classes:
            return int(text)
        raise InvalidRequest(
            f"class {text} does not exist: the model has classes 0 to {classes - 1}"
        )
    if not names:
        raise InvalidRequest(
            f"the plan has no class names, so {text!r} cannot be found: give the number of the "
            "class, or the names with --labels"
        )
    known = _classes_by_name(names[:classes])
    found = known.get(text.casefold(), [])
    if len(found) == 1:
        return found[0]
    if found:
        *others, last = found
        raise InvalidRequest(
            f"the name {text!r} belongs to the classes {', '.join(map(str, others))} and {last}: "
            "use the number of the class"
        )
    near = get_close_matches(text.casefold()[:MAX_NAME], known, n=1)
    hint = (
        f"did you mean {names[known[near[0]][0]]!r}?"
        if near
        else f"give a number from 0 to {classes - 1}, or a name such as {names[0]!r}"
    )
    raise InvalidRequest(f"there is no class {text[:MAX_NAME]!r}: {hint}")


def _number(wanted: Any) -> int:
    """A whole number of any library."""
    try:
        return operator.index(wanted)
    except TypeError:
        raise InvalidRequest(
            f"a class must be a whole number or a name, not {repr(wanted)[:80]} "
            f"({type(wanted).__name__})"
        ) from None


def _classes_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    """The classes of each full name and of each synonym in it."""
    found = defaultdict(list)
    for index, name in enumerate(names):
        for each in {part.strip().casefold() for part in (name, *name.split(","))} - {""}:
            found[each].append(index)
    return found
