"""How many denoising steps each AR iteration takes: diffusion step annealing (arXiv 2505.20297)."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from ..engines.checked_json import JSONError, Value, integer, list_of, load, text
from ..errors import DisaError
from ..files import read_bytes

MIN_STEPS = 2
MAX_STEPS = 1000
MAX_SCHEDULE_BYTES = 4 << 20
FORMAT = "disa-schedule"
FORMAT_VERSION = 1


class Strategy(StrEnum):
    """The shape of the way from many steps to few.

    `FIXED` is no annealing: the upper count in every iteration, over the whole range of
    timesteps, as the original models sample. `ADAPTIVE` falls like `LINEAR`, and each token,
    or each image of a model whose tokens attend to each other in the head, leaves out the steps
    that it does not need.
    """

    LINEAR = "linear"
    COSINE = "cosine"
    TWO_STAGE = "two-stage"
    CONSTANT = "constant"
    ADAPTIVE = "adaptive"
    FIXED = "fixed"


class Schedule(Protocol):
    """Anything that says how many steps an AR iteration takes."""

    def steps(self, iteration: int, iterations: int) -> int:
        """Nominal denoising steps of AR iteration `iteration` (from 0) of `iterations`."""
        ...


@dataclass(frozen=True)
class AnnealedSchedule:
    """Steps falling from `upper` to `lower` over the AR iterations."""

    upper: int = 50
    lower: int = 5
    strategy: Strategy = Strategy.LINEAR

    def __post_init__(self) -> None:
        if self.lower > self.upper:
            raise DisaError(
                f"the lower step count {self.lower} is above the upper one {self.upper}: "
                "give --steps UPPER:LOWER"
            )
        if not MIN_STEPS <= self.lower <= self.upper <= MAX_STEPS:
            raise DisaError(
                f"step counts go from {MIN_STEPS} to {MAX_STEPS}, not {self.upper}:{self.lower}"
            )

    def steps(self, iteration: int, iterations: int) -> int:
        """The official rule; a single iteration takes the count of a first one."""
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
    """Steps of each AR iteration as they were measured to be needed.

    Attributes:
        counts: steps, one number for each AR iteration of the measured runs.
    """

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.counts:
            raise DisaError("a schedule needs the steps of at least one AR iteration")
        for count in self.counts:
            if not MIN_STEPS <= count <= MAX_STEPS:
                raise DisaError(
                    f"step counts go from {MIN_STEPS} to {MAX_STEPS}, and a schedule has {count}"
                )

    def steps(self, iteration: int, iterations: int) -> int:
        """The measured count; for another number of iterations, what lies between the counts."""
        last = len(self.counts) - 1
        place = iteration * last / (iterations - 1) if iterations > 1 else 0.0
        low = min(int(place), last)
        share = place - low
        high = self.counts[min(low + 1, last)]
        return round(self.counts[low] * (1 - share) + high * share)

    def __str__(self) -> str:
        return "fitted " + " ".join(map(str, self.counts))


def read_schedule(path: Path) -> FittedSchedule:
    """The schedule in a JSON file, as disa-calibrate writes it.

    Raises:
        DisaError: the file cannot be read, or holds no usable schedule.
    """
    data = read_bytes(path, MAX_SCHEDULE_BYTES)
    try:
        return _checked(load(data, "the schedule"))
    except (JSONError, DisaError) as error:
        raise DisaError(
            f"{path}: {error}: give a schedule that disa-calibrate has written"
        ) from error


def as_schedule(given: Any) -> Schedule:
    """A schedule from an object with `steps`, the path of a file, or a plan's default."""
    if isinstance(given, str | Path):
        return read_schedule(Path(given))
    if isinstance(given, Mapping):
        try:
            return _checked(Value("the plan's schedule", given))
        except JSONError as error:
            raise DisaError(f"{error}: export the checkpoint again") from error
    if not callable(getattr(given, "steps", None)):
        raise DisaError("a schedule is an object with a method steps, or the path of a JSON file")
    schedule: Schedule = given
    return schedule


def schedule_content(schedule: FittedSchedule) -> dict[str, Any]:
    """What a schedule file must hold; it may hold more."""
    return {"format": FORMAT, "version": FORMAT_VERSION, "steps": list(schedule.counts)}


def _checked(root: Value) -> FittedSchedule:
    if root.get("format", text) != FORMAT:
        raise JSONError(f"{root.where} does not have the format {FORMAT}")
    version = root.get("version", integer)
    if version != FORMAT_VERSION:
        raise JSONError(f"{root.where} has version {version}, and this disa reads {FORMAT_VERSION}")
    return FittedSchedule(root.get("steps", list_of(integer)))


def parse_steps(text: str) -> tuple[int, int]:
    """`"50:5"` as (50, 5); `"50"` as (50, 50)."""
    match = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text.strip())
    if not match:
        raise DisaError(f"steps are UPPER:LOWER, such as 50:5, not {text!r}")
    upper = int(match[1])
    return upper, int(match[2]) if match[2] else upper
