"""Policies: when waiting images join the running ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..settings import PolicyName


class Policy(Protocol):
    """Decides between two AR iterations how many images join."""

    def admit(self, waited: Sequence[float], cohorts: int, room: int) -> int:
        """The number of waiting images that join now.

        Args:
            waited: seconds that each image has waited, the longest first.
            cohorts: number of running groups whose images share backbone calls.
            room: number of images that may still join.
        """
        ...

    def delay(self, waited: float) -> float:
        """Seconds until an image that has waited for `waited` seconds may join an idle model."""
        ...


@dataclass(frozen=True)
class JoinAtOnce:
    """Waiting images join before the next AR iteration."""

    def admit(self, waited: Sequence[float], cohorts: int, room: int) -> int:
        return min(len(waited), room)

    def delay(self, waited: float) -> float:
        return 0.0


@dataclass(frozen=True)
class Cohorts:
    """At most this many cohorts run; images that arrive meanwhile wait and form the next one.

    For engines where a call is expensive and a row is cheap: each cohort needs its own backbone
    call in every AR iteration.
    """

    most: int

    def admit(self, waited: Sequence[float], cohorts: int, room: int) -> int:
        return min(len(waited), room) if cohorts < self.most else 0

    def delay(self, waited: float) -> float:
        return 0.0


@dataclass(frozen=True)
class Static:
    """Batches that are collected for some seconds; the next starts when the last has ended."""

    seconds: float

    def admit(self, waited: Sequence[float], cohorts: int, room: int) -> int:
        complete = len(waited) >= room or self.delay(max(waited, default=0.0)) <= 0
        return min(len(waited), room) if complete and not cohorts else 0

    def delay(self, waited: float) -> float:
        return max(0.0, self.seconds - waited)


@dataclass(frozen=True)
class OneAtATime:
    """No batches: one image at a time."""

    def admit(self, waited: Sequence[float], cohorts: int, room: int) -> int:
        return 0 if cohorts else min(len(waited), 1)

    def delay(self, waited: float) -> float:
        return 0.0


def make_policy(name: str, cohorts: int, wait: float) -> Policy:
    """The policy with that name.

    Args:
        cohorts: see `Cohorts`.
        wait: see `Static`.

    Raises:
        InvalidRequest: there is no policy with that name.
    """
    match PolicyName(name):
        case PolicyName.JOIN:
            return JoinAtOnce()
        case PolicyName.COHORTS:
            return Cohorts(cohorts)
        case PolicyName.STATIC:
            return Static(wait)
        case PolicyName.SINGLE:
            return OneAtATime()
