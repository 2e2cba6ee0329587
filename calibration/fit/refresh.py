"""Chooses the full passes of a cached backbone, from its measured errors."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engines.array_types import Doubles
from ..measurement.refresh import RefreshErrors


@dataclass(frozen=True)
class RefreshChoice:
    """A choice of full passes, with its expected error and time.

    Attributes:
        passes: AR iterations with a full pass, ascending from 0.
        error: error of the other iterations: the mean over all tokens, with the same weights as
            errors of steps.
        backbone_seconds: for an image.
    """

    passes: tuple[int, ...]
    error: float
    backbone_seconds: float

    def to_json(self) -> dict[str, Any]:
        """The entry of a schedule file."""
        return {
            "passes": list(self.passes),
            "error": self.error,
            "backbone_seconds": self.backbone_seconds,
        }


def refresh_choices(
    errors: RefreshErrors, share: Doubles, plain: Doubles
) -> tuple[RefreshChoice, ...]:
    """For every number of full passes, the choice with the least error; fewest passes first.

    The choices are found exactly, by dynamic programming over the last full pass. The last choice
    is the exact loop, with the plain backbone in every iteration.

    Args:
        share: weight of the error of each AR iteration, [iterations].
        plain: seconds of the passes of the plain backbone for an image, [iterations].
    """
    count = len(errors.tokens)
    added = errors.every * share
    # The error that is added if a full pass in `row` is the last one before `column`.
    summed = np.concatenate([np.zeros((count, 1)), added.cumsum(axis=1)], axis=1)
    begin = np.arange(count)
    between = summed - summed[begin, begin][:, None]
    between[np.tril_indices(count, 0, count + 1)] = np.inf
    least = np.full(count + 1, np.inf)
    least[-1] = 0.0
    chosen, found = [], []
    for _ in range(count):
        total = between + least
        chosen.append(total.argmin(axis=1))
        least = np.append(total.min(axis=1), np.inf)
        place, passes = 0, []
        for choice in reversed(chosen):
            passes.append(place)
            place = int(choice[place])
        full = np.isin(begin, passes)
        seconds = float(np.where(full, errors.full, errors.reuse).sum())
        found.append(RefreshChoice(tuple(passes), float(least[0]), seconds))
    found[-1] = RefreshChoice(tuple(range(count)), 0.0, float(plain.sum()))
    return tuple(found)


def cheapest(choices: tuple[RefreshChoice, ...], error: float) -> RefreshChoice:
    """The choice with the least time among those whose error is at most `error`."""
    good = [choice for choice in choices if choice.error <= error]
    return min(good, key=lambda choice: (choice.backbone_seconds, -len(choice.passes)))
