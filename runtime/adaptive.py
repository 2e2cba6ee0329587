"""Denoising that leaves out the steps that are not needed.

What leaves a batch together is an item: a row of MAR and Harmon, whose tokens do not see each
other in the head, and a whole image of FlowAR and xAR, whose tokens attend to each other there.

After the first steps of an AR iteration each item is asked how much its prediction still
changes from one step to the next. The head predicts the token anew at every step, and a step
that is left out keeps the prediction of the one before for longer: where the prediction changes
by d between neighbouring steps, it is off by about q * d if only every q-th step is taken. So
with the tolerance T an item keeps

    ceil(R * d / T)

of its R remaining steps, at least two, where d is the root of the mean square over the item's
tokens and channels, and is scaled by s / s': s is the mean width in time of the remaining
steps, s' that of the step in which d was measured.

That d is the curvature of the path. With x_t = (1 - t) token + t noise and the velocity v the
prediction is x_t - t v, and along the path it changes at the rate -t dv/dt: not at all on a
straight path, and by as much as the path turns on others. The prediction of DDPM is the same one
for another weighting of token and noise. Where the sampler adds noise (DDPM, Euler-Maruyama), the
noise moves the prediction as well. That part grows with the root of q and not with q, so that
more steps are kept than it needs.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ..engines.session import Array
from .head import Floats
from .sampler import StepTable

Ints = npt.NDArray[np.int64]

FIRST_SHARE = 0.2
"""Share of the steps that every item takes."""
MIN_FIRST = 2
"""A change needs two predictions."""
MIN_REST = 3
"""With fewer steps left there is nothing to leave out."""
EIGHTHS = (1, 2, 3, 4, 6, 8)
"""Shares of the remaining steps that can be kept: few, so that few items go alone."""


class Denoiser(Protocol):
    """A head with what one AR iteration gives it. Items are the last axis but one of x."""

    @property
    def items(self) -> int:
        """How many items there are."""
        ...

    def walk(self, table: StepTable, step: Ints, draw: int, x: Array) -> Array:
        """Take every item through steps of its own.

        Args:
            table: the steps of all items.
            step: where in the table each item is, [steps, items].
            draw: how many steps the items took before, which says what noise they get now.
            x: the items now, [..., items, C].
        """
        ...

    def noise(self, draw: int) -> Floats | None:
        """What a step adds, scaled by the table; None for none."""
        ...

    def taken(self, items: Ints) -> Self:
        """The same for some items, in another order."""
        ...

    def thinned(self, table: StepTable, kept: Ints) -> StepTable:
        """The table of the same sampler that takes only the steps `kept`, ascending."""
        ...


def denoise(head: Denoiser, table: StepTable, tolerance: float, start: Array) -> Array:
    """Denoise the items of an AR iteration, each with as many steps as it needs.

    Args:
        table: all steps, noisiest first.
        tolerance: see the module; 0 takes all steps.
        start: noise, [..., items, C].

    Returns:
        The sampled items, [..., items, C].
    """
    steps = table.every_step(head.items)
    first = max(MIN_FIRST, round(FIRST_SHARE * len(table)))
    rest = len(table) - first
    if not tolerance or rest < MIN_REST:
        return head.walk(table, steps, 0, start)
    states = [np.asarray(head.walk(table, steps[: first - 2], 0, start))]
    for index in (first - 2, first - 1):
        after = head.walk(table, steps[index : index + 1], index, states[-1])
        states.append(np.asarray(after))
    change = prediction_change(head, table, first, states)
    kept = steps_kept(change, rest, tolerance)
    return _finish(head, table.part(slice(first, None)), kept, first, states[-1])


def prediction_change(
    head: Denoiser, table: StepTable, first: int, states: Sequence[Floats]
) -> Floats:
    """How much the prediction of each item changes in a remaining step of mean width, [items].

    Args:
        first: steps that were taken.
        states: the items before the last two of them and after these, three of [..., items, C].
    """
    earlier, later = (
        table.predicted_token(index, before, after, head.noise(index))
        for index, before, after in zip((first - 2, first - 1), states, states[1:], strict=False)
    )
    others = tuple(axis for axis in range(later.ndim) if axis != later.ndim - 2)
    change = np.sqrt(np.square(later - earlier).mean(axis=others))
    places = table.places
    mean_width = (places[first] - places[-1]) / (len(table) - first - 1)
    scaled: Floats = change * (mean_width / (places[first - 2] - places[first - 1]))
    return scaled


def steps_kept(change: Floats, rest: int, tolerance: float) -> Ints:
    """How many of the `rest` steps each item takes: two to all of them, as `levels` allows.

    An item whose change is not a number takes all of them.
    """
    allowed = levels(rest)
    wanted = np.ceil(np.fmin(rest * change.astype(np.float64) / tolerance, rest))
    return np.array(allowed, np.int64)[np.searchsorted(allowed, wanted)]


def levels(rest: int) -> list[int]:
    """The numbers of steps that can be kept of `rest`, ascending."""
    return sorted({max(2, -(-rest * eighth // 8)) for eighth in EIGHTHS})


def joint_table(head: Denoiser, table: StepTable) -> tuple[StepTable, dict[int, range]]:
    """One table that holds the steps of every level, and where in it each of them stands.

    The first and the last step are always kept. The table depends on no data, so what the
    head computes for its timesteps is computed once.

    Args:
        table: the steps that remain.
    """
    tables, places, start = [], {}, 0
    for level in levels(len(table)):
        kept = np.round(np.linspace(0, len(table) - 1, level)).astype(np.int64)
        thinned = head.thinned(table, kept)
        tables.append(thinned)
        places[level] = range(start, start + len(thinned))
        start += len(thinned)
    return type(table).joined(tables), places


def _finish(head: Denoiser, table: StepTable, kept: Ints, draw: int, x: Floats) -> Array:
    """Take each item through as many of the remaining steps as it keeps."""
    joint, places = joint_table(head, table)
    lengths = np.array([len(places[int(level)]) for level in kept])
    # Items are sorted by their steps, so those that go on are the first ones.
    order = np.argsort(-lengths, kind="stable")
    left = lengths[order]
    begin = np.array([places[int(level)].start for level in kept[order]])
    head, x = head.taken(order), x[..., order, :]
    done = 0
    for length in np.unique(left):
        active = int(np.count_nonzero(left >= length))
        head = head.taken(np.arange(active))
        step = begin[:active] + np.arange(done, length)[:, None]
        before = np.ascontiguousarray(x[..., :active, :])
        x[..., :active, :] = np.asarray(head.walk(joint, step, draw + done, before))
        done = int(length)
    sampled = np.empty_like(x)
    sampled[..., order, :] = x
    return sampled


def take(array: Array, items: Ints, axis: int) -> Array:
    """Some items of an array; the array itself, wherever it lives, if they are all of it."""
    if np.array_equal(items, np.arange(array.shape[axis])):
        return array
    return np.ascontiguousarray(np.take(np.asarray(array), items, axis=axis))
