"""What disa-bench measures: one combination of engine, batch size and sampling options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..engines.open import ENGINES
from ..errors import DisaError
from ..runtime.sampling.schedule import parse_steps

MAX_BATCH = 4096


@dataclass(frozen=True)
class Variant:
    """One way to generate a batch.

    Attributes:
        engine: name of the engine; "auto" is resolved when the plan is loaded.
        batch_size: images generated together.
        options: overrides of the plan's sampling options, by name.
    """

    engine: str
    batch_size: int
    options: Mapping[str, Any]


def variants(
    engines: Sequence[str],
    batch_sizes: Sequence[int],
    steps: Sequence[str | None],
    iterations: Sequence[int | None],
    options: Mapping[str, Any],
) -> list[Variant]:
    """All combinations, small batches first, so that the peak memory of each can be measured."""
    fixed = {name: value for name, value in options.items() if value is not None}
    found = []
    for size, engine, count, step in product(sorted(batch_sizes), engines, iterations, steps):
        chosen = dict(fixed)
        if step is not None:
            chosen["steps"] = step
        if count is not None:
            chosen["num_iterations"] = count
        found.append(Variant(engine, size, chosen))
    return found


def parse_list(text: str | None) -> list[str]:
    """Parse `"a, b"` to ["a", "b"].

    Raises:
        DisaError: an entry is empty or occurs twice.
    """
    entries = [entry.strip() for entry in (text or "").split(",")] if text is not None else []
    if "" in entries:
        raise DisaError(f"{text!r} has an empty entry: separate values with single commas")
    if len(set(entries)) != len(entries):
        raise DisaError(f"{text!r} has a value twice")
    return entries


def parse_numbers(text: str | None, what: str, most: int) -> list[int]:
    """Parse `"1,8"` to [1, 8].

    Raises:
        DisaError: an entry is not a whole number from 1 to `most`.
    """
    numbers = []
    for entry in parse_list(text):
        number = int(entry) if entry.isascii() and entry.isdigit() and len(entry) < 10 else 0
        if not 1 <= number <= most:
            raise DisaError(f"the {what} {entry!r} is not a whole number from 1 to {most}")
        numbers.append(number)
    return numbers


def parse_step_counts(text: str | None) -> list[str]:
    """Parse `"50:5,100:100"` to its entries, each checked."""
    entries = parse_list(text)
    for entry in entries:
        parse_steps(entry)
    return entries


def parse_engines(text: str) -> list[str]:
    """Parse `"cpu,openvino"` to its entries, each checked."""
    entries = parse_list(text)
    for entry in entries:
        if entry not in ENGINES:
            raise DisaError(f"there is no engine {entry}: choose one of {', '.join(ENGINES)}")
    return entries
