"""Classes by number or by name."""

import operator
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from heapq import nlargest
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from ....errors import DisaError, InvalidRequest
from ....files import read_text, text_lines

MAX_BYTES = 1 << 22
MAX_NAME = 1000
"""Most characters of a class name; ImageNet's longest has 121."""
COMPARED_LETTERS, COMPARED_NAMES, LIKELY_NAMES = 60, 10_000, 20
"""Limits of the search for a similar name: a server searches on its event loop."""


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
    names = tuple(names[:classes])
    known = _classes_by_name(names)
    found = known.get(text.casefold(), [])
    if len(found) == 1:
        return found[0]
    if found:
        *others, last = found
        raise InvalidRequest(
            f"the name {text!r} belongs to the classes {', '.join(map(str, others))} and {last}: "
            "use the number of the class"
        )
    near = _nearest(text.casefold(), names)
    hint = (
        f"did you mean {names[known[near][0]]!r}?"
        if near is not None
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


def _nearest(text: str, names: tuple[str, ...]) -> str | None:
    """The name or synonym that is most similar to a text; None if there is no similar one.

    Names are compared letter by letter only if they have many pairs of letters in common with the
    text: that comparison takes up to a millisecond for each.
    """
    text = text[:COMPARED_LETTERS]
    mask = _letter_pairs(text)

    def shared(entry: tuple[str, int]) -> float:
        own = entry[1]
        return (own & mask).bit_count() / (own.bit_count() + mask.bit_count() or 1)

    likely = [name for name, _ in nlargest(LIKELY_NAMES, _masks(names).items(), shared)]
    return next(iter(get_close_matches(text, likely, n=1)), None)


@lru_cache(4)
def _masks(names: tuple[str, ...]) -> Mapping[str, int]:
    """The `_letter_pairs` of each full name and of each synonym."""
    known = islice(_classes_by_name(names), COMPARED_NAMES)
    return {name: _letter_pairs(name[:COMPARED_LETTERS]) for name in known}


def _letter_pairs(text: str) -> int:
    """A number with a bit for each pair of neighbouring letters; a few pairs share a bit."""
    mask = 0
    for one, other in pairwise(text):
        mask |= 1 << (ord(one) * 31 + ord(other)) % 509
    return mask


@lru_cache(4)
def _classes_by_name(names: tuple[str, ...]) -> Mapping[str, list[int]]:
    """The classes of each full name and of each synonym in it."""
    found = defaultdict(list)
    for index, name in enumerate(names):
        for each in {part.strip().casefold() for part in (name, *name.split(","))} - {""}:
            found[each].append(index)
    return found
