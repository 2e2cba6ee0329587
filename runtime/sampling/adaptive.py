"""Adaptive steps: which denoising steps can be skipped.

After the first steps of an AR iteration the change of each item's prediction from one step to the
next is measured (see `denoise` for items). The head predicts the token at every step, and a skipped
step uses the previous prediction for longer: if the prediction changes by d between neighbouring
steps, its error is about q * d when only every q-th step is run. So with the tolerance T an item
runs

    ceil(R * d / T)

of its R remaining steps, at least two. Here d is the root mean square of the change over the item's
tokens and channels, scaled by s / s': s is the mean width in time of the remaining steps, s' that
of the step in which d was measured.

This d is the curvature of the path. With x_t = (1 - t) token + t noise and the velocity v the
prediction is x_t - t v, and along the path it changes at the rate -t dv/dt: zero on a straight
path, and otherwise as much as the path turns. The prediction of DDPM is the same for another
weighting of token and noise. If the sampler adds noise (DDPM, Euler-Maruyama), the noise changes
the prediction too. This part grows with the square root of q instead of q, so that more steps are
run than necessary.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ...engines.array_types import Floats, Ints
from .sampler import StepTable

Subsample = Callable[[StepTable, Ints], StepTable]
"""The table of the same sampler with only the steps at these indices, ascending."""

FIRST_SHARE = 0.2
"""Share of the steps that every item runs."""
MIN_FIRST = 2
"""Measuring a change needs two predictions."""
MIN_REST = 3
"""With fewer remaining steps nothing can be skipped."""
EIGHTHS = (1, 2, 3, 4, 6, 8)
"""Possible shares of the remaining steps, in eighths: few, so that few items run alone."""


def first_steps(steps: int) -> int:
    """The number of steps that every item runs before it may skip any."""
    return max(MIN_FIRST, round(FIRST_SHARE * steps))


def prediction_change(
    table: StepTable, first: int, states: Sequence[Floats], noises: Sequence[Floats | None]
) -> Floats:
    """The change of each item's prediction in a remaining step of mean width, [items].

    Args:
        first: number of steps that were run.
        states: the items before the last two of them and after these, three of [..., items, C].
        noises: the noise added in these two steps, scaled by the table; None for none.
    """
    earlier, later = (
        table.predicted_token(index, before, after, noise)
        for index, before, after, noise in zip(
            (first - 2, first - 1), states, states[1:], noises, strict=False
        )
    )
    others = tuple(axis for axis in range(later.ndim) if axis != later.ndim - 2)
    change = np.sqrt(np.square(later - earlier).mean(axis=others))
    places = table.places
    mean_width = (places[first] - places[-1]) / (len(table) - first - 1)
    scaled: Floats = change * (mean_width / (places[first - 2] - places[first - 1]))
    return scaled


def steps_kept(change: Floats, rest: int, tolerance: float) -> Ints:
    """How many of the `rest` steps each item runs: two to all of them, one of `levels`.

    An item whose change is not a number runs all of them.
    """
    allowed = levels(rest)
    needed = np.ceil(np.fmin(rest * change.astype(np.float64) / tolerance, rest))
    return np.array(allowed, np.int64)[np.searchsorted(allowed, needed)]


def levels(rest: int) -> list[int]:
    """The possible numbers of steps out of `rest`, ascending."""
    return sorted({max(2, -(-rest * eighth // 8)) for eighth in EIGHTHS})


def level_tables(left: StepTable, subsample: Subsample) -> dict[int, StepTable]:
    """The steps of every level, ascending.

    The first and the last step are always included. The tables do not depend on data, so the head
    processes their timesteps only once.

    Args:
        left: the remaining steps.
    """
    tables = {}
    for level in levels(len(left)):
        kept = np.round(np.linspace(0, len(left) - 1, level)).astype(np.int64)
        tables[level] = subsample(left, kept)
    return tables
