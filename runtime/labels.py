"""Classes by number or by name."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from ..errors import DisaError
from ..files import read_text

MAX_BYTES = 1 << 22


def read_labels(path: Path, classes: int | None = None) -> list[str]:
    """Class names from a text file, one a line, the first for class 0.

    Args:
        classes: how many there must be; None if that is not known.
    """
    names = [line.strip() for line in read_text(path, MAX_BYTES).splitlines()]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise DisaError(f"{path}: it must hold one class name a line")
    if classes not in (None, len(names)):
        raise DisaError(
            f"{path}: it has {len(names)} class names, and the model has {classes} classes: give "
            "one a line, the first for class 0"
        )
    return names


def find_class(wanted: int | str, classes: int, names: Sequence[str] | None) -> int:
    """The number of a class given by number or by name (case does not matter).

    A name of several synonyms, such as "sports car, sport car", is found by each of them.
    """
    text = str(wanted).strip()
    if re.fullmatch(r"-?\d{1,18}", text):
        if 0 <= int(text) < classes:
            return int(text)
        raise DisaError(f"class {text} does not exist: the model has classes 0 to {classes - 1}")
    if not names:
        raise DisaError(
            f"the plan has no class names, so {text!r} cannot be found: give the number of the "
            "class, or the names with --labels"
        )
    names = names[:classes]
    known = {name.casefold(): index for index, name in reversed(list(enumerate(names)))}
    for index, name in reversed(list(enumerate(names))):
        for synonym in name.split(","):
            known.setdefault(synonym.strip().casefold(), index)
    if text.casefold() in known:
        return known[text.casefold()]
    near = get_close_matches(text.casefold(), known, n=1)
    hint = f"did you mean {names[known[near[0]]]!r}?" if near else f"such as {names[0]!r}"
    raise DisaError(f"there is no class {text!r}: {hint}")
