"""How many denoising steps each AR iteration takes: diffusion step annealing (arXiv 2505.20297)."""

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from ..errors import DisaError

MIN_STEPS = 2
MAX_STEPS = 1000


class Strategy(StrEnum):
    """The shape of the way from many steps to few.

    `FIXED` is no annealing: the upper count in every iteration, over the whole range of
    timesteps, as the original models sample.
    """

    LINEAR = "linear"
    COSINE = "cosine"
    TWO_STAGE = "two-stage"
    CONSTANT = "constant"
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
            case Strategy.LINEAR:
                share = (last - iteration) / last if last else 1.0
            case Strategy.COSINE:
                share = (math.cos(math.pi * iteration / last) + 1) / 2 if last else 1.0
        return self.lower + int(share * span)

    def __str__(self) -> str:
        return f"{self.strategy} {self.upper}:{self.lower}"


def parse_steps(text: str) -> tuple[int, int]:
    """`"50:5"` as (50, 5); `"50"` as (50, 50)."""
    match = re.fullmatch(r"(\d{1,4})(?::(\d{1,4}))?", text.strip())
    if not match:
        raise DisaError(f"steps are UPPER:LOWER, such as 50:5, not {text!r}")
    upper = int(match[1])
    return upper, int(match[2]) if match[2] else upper
