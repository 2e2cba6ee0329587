"""How many denoising steps each AR iteration takes: diffusion step annealing (arXiv 2505.20297)."""

import itertools
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from ...checked_json import JSONError, Value, integer, list_of, load, optional, text
from ...errors import DisaError, InvalidRequest
from ...files import read_bytes

MIN_STEPS = 2
MAX_STEPS = 1000
MAX_SCHEDULE_BYTES = 4 << 20
FORMAT = "disa-schedule"
FORMAT_VERSION = 2
"""Version of files that set more than steps; other files have version 1."""
MAX_TOKENS = 1 << 24


class Strategy(StrEnum):
    """How the number of steps falls from upper to lower.

    `FIXED` is no annealing: the upper count in every iteration, over the whole range of
    timesteps, as in the original models. `ADAPTIVE` falls like `LINEAR`, and each token,
    or each image of a model whose tokens attend to each other in the head, skips the steps
    that it does not need.
    """

    LINEAR = "linear"
    COSINE = "cosine"
    TWO_STAGE = "two-stage"
    CONSTANT = "constant"
    ADAPTIVE = "adaptive"
    FIXED = "fixed"


class Schedule(Protocol):
    """An object that gives the number of denoising steps of each AR iteration."""

    def steps(self, iteration: int, iterations: int) -> int:
        """Nominal denoising steps of AR iteration `iteration` (from 0) of `iterations`."""
        ...


@dataclass(frozen=True)
class AnnealedSchedule:
    """Steps falling from `upper` to `lower` over the AR iterations.

    Raises:
        InvalidRequest: a number or the strategy is not valid.
    """

    upper: int = 50
    lower: int = 5
    strategy: Strategy = Strategy.LINEAR

    def __post_init__(self) -> None:
        upper, lower = _whole((self.upper, self.lower))
        if self.strategy not in list(Strategy):
            known, found = ", ".join(Strategy), str(self.strategy)[:80]
            raise InvalidRequest(f"the strategy must be one of {known}, not {found!r}")
        for name, value in (("upper", upper), ("lower", lower)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "strategy", Strategy(self.strategy))
        if self.lower > self.upper:
            raise InvalidRequest(
                f"the lower step count {self.lower} is above the upper one {self.upper}: "
                "give --steps UPPER:LOWER"
            )
        if not MIN_STEPS <= self.lower <= self.upper <= MAX_STEPS:
            raise InvalidRequest(
                f"step counts go from {MIN_STEPS} to {MAX_STEPS}, not {self.upper}:{self.lower}"
            )

    def steps(self, iteration: int, iterations: int) -> int:
        """The official rule; a single iteration has the count of the first one."""
        last = iterations - 1
        span = self.upper - self.lower
        match self.strategy:
            case Strategy.FIXED:
                return self.upper
            case Strategy.CONSTANT:
                return self.lower
            case Strategy.TWO_STAGE:
                return self.upper if iteration < last / 2 or last == 0 else self.lower
            case Strategy.LINEAR | Strategy.ADAPTIVE:
                share = (last - iteration) / last if last else 1.0
            case Strategy.COSINE:
                share = (math.cos(math.pi * iteration / last) + 1) / 2 if last else 1.0
        return self.lower + int(share * span)

    def __str__(self) -> str:
        return f"{self.strategy} {self.upper}:{self.lower}"


@dataclass(frozen=True)
class FittedSchedule:
    """Steps of each AR iteration that were fitted to a measurement.

    Attributes:
        counts: steps, one number for each AR iteration of the measured runs.
        tokens: tokens that each of them predicts; None for the rule of the family.
        refresh: which of them (from 0, ascending) are full passes of a cached backbone;
            None if the schedule does not set them.

    Raises:
        InvalidRequest: a number is not valid.
    """

    counts: tuple[int, ...]
    tokens: tuple[int, ...] | None = None
    refresh: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("counts", "tokens", "refresh"):
            numbers = getattr(self, name)
            if numbers is not None or name == "counts":
                object.__setattr__(self, name, _whole(numbers))
        if not self.counts:
            raise InvalidRequest("a schedule needs the steps of at least one AR iteration")
        for count in self.counts:
            if not MIN_STEPS <= count <= MAX_STEPS:
                raise InvalidRequest(
                    f"step counts go from {MIN_STEPS} to {MAX_STEPS}, and a schedule has {count}"
                )
        if self.tokens is not None:
            if len(self.tokens) != len(self.counts):
                raise InvalidRequest(
                    f"a schedule has steps for {len(self.counts)} AR iterations and tokens for "
                    f"{len(self.tokens)}"
                )
            if min(self.tokens) < 1 or sum(self.tokens) > MAX_TOKENS:
                raise InvalidRequest(
                    "each AR iteration of a schedule predicts at least one token, and all together "
                    f"at most {MAX_TOKENS}"
                )
        if self.refresh is not None:
            ascending = all(a < b for a, b in itertools.pairwise(self.refresh))
            inside = all(0 <= index < len(self.counts) for index in self.refresh)
            if not (self.refresh and ascending and inside):
                raise InvalidRequest(
                    f"a schedule's full passes are numbers from 0 to {len(self.counts) - 1}, "
                    "ascending"
                )

    @property
    def iterations(self) -> int | None:
        """The number of AR iterations, if the schedule fits no other number."""
        return None if self.tokens is None and self.refresh is None else len(self.counts)

    def steps(self, iteration: int, iterations: int) -> int:
        """The fitted count; interpolated for another number of iterations."""
        last = len(self.counts) - 1
        place = iteration * last / (iterations - 1) if iterations > 1 else 0.0
        low = min(int(place), last)
        share = place - low
        high = self.counts[min(low + 1, last)]
        return round(self.counts[low] * (1 - share) + high * share)

    def __str__(self) -> str:
        shown = "fitted " + " ".join(map(str, self.counts))
        for name, numbers in (("tokens", self.tokens), ("refresh", self.refresh)):
            if numbers is not None:
                shown += f", {name} " + " ".join(map(str, numbers))
        return shown


def _whole(numbers: Any) -> tuple[int, ...]:
    """Whole numbers of any library.

    Raises:
        InvalidRequest: they are something else.
    """
    try:
        return tuple(operator.index(number) for number in numbers)
    except TypeError:
        raise InvalidRequest(
            f"a schedule has whole numbers, not {repr(numbers)[:80]}: round them"
        ) from None


def read_schedule(path: Path) -> FittedSchedule:
    """The schedule in a JSON file, as disa-calibrate writes it.

    Raises:
        DisaError: the file cannot be read, or has no usable schedule.
    """
    data = read_bytes(path, MAX_SCHEDULE_BYTES)
    try:
        return _checked(load(data, "the schedule"))
    except (JSONError, DisaError) as error:
        raise DisaError(
            f"{path}: {error}: give a schedule that disa-calibrate has written"
        ) from error


def plan_schedule(content: Any) -> Schedule:
    """The default schedule of a plan, which must contain its steps and not the name of a file."""
    try:
        return _checked(Value("the plan's schedule", content))
    except JSONError as error:
        raise DisaError(f"{error}: export the checkpoint again") from error


def as_schedule(given: Any) -> Schedule:
    """A schedule from an object with `steps`, the path of a file, or the content of one."""
    if isinstance(given, str | Path):
        return read_schedule(Path(given))
    if isinstance(given, Mapping):
        return plan_schedule(given)
    if isinstance(given, type) or not callable(getattr(given, "steps", None)):
        raise InvalidRequest(
            "a schedule is an object with a method steps, or the path of a JSON file"
        )
    schedule: Schedule = given
    return schedule


def schedule_content(schedule: FittedSchedule) -> dict[str, Any]:
    """The required content of a schedule file, which may have further entries."""
    more = {
        name: list(numbers)
        for name, numbers in (("tokens", schedule.tokens), ("refresh", schedule.refresh))
        if numbers is not None
    }
    version = FORMAT_VERSION if more else 1
    return {"format": FORMAT, "version": version, "steps": list(schedule.counts), **more}


def _checked(root: Value) -> FittedSchedule:
    if root.get("format", text) != FORMAT:
        raise JSONError(f"{root.where} does not have the format {FORMAT}")
    version = root.get("version", integer)
    if version not in (1, FORMAT_VERSION):
        raise JSONError(
            f"{root.where} has version {version}, and this disa reads 1 and {FORMAT_VERSION}"
        )
    counts = root.get("steps", list_of(integer))
    if version == 1:
        return FittedSchedule(counts)
    whole = optional(list_of(integer))
    return FittedSchedule(counts, root.get("tokens", whole, None), root.get("refresh", whole, None))


def parse_steps(text: str) -> tuple[int, int]:
    """`"50:5"` as (50, 5); `"50"` as (50, 50)."""
    match = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text.strip())
    if not match:
        raise InvalidRequest(f"steps are UPPER:LOWER, such as 50:5, not {text[:80]!r}")
    upper = int(match[1])
    return upper, int(match[2]) if match[2] else upper
