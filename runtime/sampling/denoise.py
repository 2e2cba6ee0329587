"""The denoising loop of an AR iteration, in which each item has its own steps.

An item is what leaves a call of the head together: a row of MAR and Harmon, whose tokens are
independent in the head, or a whole image of FlowAR and xAR, whose tokens attend to each other
there. Items of different images, iterations, guidance scales and step counts share calls: each has
its own row in one table with the steps of all. They are sorted by their number of remaining steps,
and leave when they are finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from ...engines.array_types import Floats, Ints
from ...engines.session import Array
from .adaptive import MIN_REST, Subsample, first_steps, level_tables, prediction_change, steps_kept
from .sampler import StepTable


class Denoiser(Protocol):
    """A head with its inputs in one AR iteration. The items are the second-to-last axis of x."""

    @property
    def items(self) -> int:
        """The number of items."""
        ...

    def run_steps(self, table: StepTable, step: Ints, drawn: Ints, x: Array) -> Array:
        """Run each item's own steps.

        Args:
            table: the steps of all items.
            step: row of each item in the table, [steps, items].
            drawn: number of steps that each item has run before, which determines its noise,
                [items].
            x: the current items, [..., items, C].
        """
        ...

    def noise(self, draw: int) -> Floats | None:
        """The noise of step `draw`, scaled by the table; None for none."""
        ...

    def select(self, items: Ints) -> Self:
        """A denoiser for some of the items, in this order."""
        ...


@dataclass(frozen=True)
class Steps:
    """The steps of some items.

    Attributes:
        table: all steps, noisiest first.
        tolerance: largest change of a prediction between two steps; up to this, items skip steps
            (see `adaptive`). 0 runs all.
        subsample: the table of the same sampler with only some steps, ascending.
    """

    table: StepTable
    tolerance: float
    subsample: Subsample

    @property
    def first(self) -> int | None:
        """The number of steps after which an item may skip others; None if it never does."""
        first = first_steps(len(self.table))
        return first if self.tolerance and len(self.table) - first >= MIN_REST else None


@dataclass(frozen=True)
class StepRanges:
    """The steps that each item still has to run.

    Attributes:
        table: the steps of all items.
        begin: first row of each item's steps in the table, [items].
        length: number of steps of each item, [items].
        drawn: number of steps that each item has run before, [items].
    """

    table: StepTable
    begin: Ints
    length: Ints
    drawn: Ints


def denoise(
    head: Denoiser, plans: Sequence[Steps], plan_of: Ints, start: Array
) -> tuple[Array, Ints]:
    """Denoise the items of an AR iteration, each with as many steps as it needs.

    Args:
        plans: the different sequences of steps.
        plan_of: index of each item's sequence, [items].
        start: noise, [..., items, C].

    Returns:
        The sampled items, [..., items, C], and the number of steps of each, [items].
    """
    firsts = [plan.first for plan in plans]
    asking = [first for first in firsts if first is not None]
    if not asking:
        ranges = all_steps(plans, plan_of)
        return run_ranges(head, ranges, start)[0], ranges.length
    # All items run together until the last one is measured, and together again after that.
    cut = max(asking)
    length = np.array(
        [
            min(len(plan.table), cut) if first is None else first
            for plan, first in zip(plans, firsts, strict=True)
        ]
    )[plan_of]
    ranges = all_steps(plans, plan_of, length)
    marks = sorted({first - back for first in asking for back in (1, 2)})
    x, states = run_ranges(head, ranges, start, marks)
    rest = remaining_steps(head, plans, plan_of, ranges, states, np.asarray(x))
    return run_ranges(head, rest, x)[0], ranges.length + rest.length


def all_steps(plans: Sequence[Steps], plan_of: Ints, length: Ints | None = None) -> StepRanges:
    """The first `length` steps of each item's table, by default all."""
    tables = [plan.table for plan in plans]
    sizes = np.array([len(table) for table in tables])
    begin = (np.cumsum(sizes) - sizes)[plan_of]
    return StepRanges(
        joined(tables), begin, sizes[plan_of] if length is None else length, np.zeros_like(begin)
    )


def remaining_steps(
    head: Denoiser,
    plans: Sequence[Steps],
    plan_of: Ints,
    done: StepRanges,
    states: dict[int, Floats],
    x: Floats,
) -> StepRanges:
    """The remaining steps of each item: all, or as many as its prediction needs.

    Args:
        done: the steps run so far.
        states: the items after certain numbers of steps.
        x: the current items.
    """
    tables: list[StepTable] = []
    begin, length = np.zeros_like(done.begin), np.zeros_like(done.length)
    start = 0
    for index, plan in enumerate(plans):
        items = np.flatnonzero(plan_of == index)
        if plan.first is None:
            added = [plan.table]
            begin[items] = start + done.length[items]
            length[items] = len(plan.table) - done.length[items]
        else:
            first = plan.first
            left = plan.table.part(slice(first, None))
            around = [states[first - 2], states[first - 1], x]
            change = prediction_change(
                plan.table,
                first,
                [state[..., items, :] for state in around],
                [of_items(head.noise(draw), items) for draw in (first - 2, first - 1)],
            )
            levels = level_tables(left, plan.subsample)
            added = list(levels.values())
            sizes = np.array([len(table) for table in added])
            place = np.searchsorted(list(levels), steps_kept(change, len(left), plan.tolerance))
            begin[items] = start + (np.cumsum(sizes) - sizes)[place]
            length[items] = sizes[place]
        tables += added
        start += sum(map(len, added))
    return StepRanges(joined(tables), begin, length, done.length)


def run_ranges(
    head: Denoiser, ranges: StepRanges, x: Array, marks: Sequence[int] = ()
) -> tuple[Array, dict[int, Floats]]:
    """Run the steps of each item.

    Args:
        x: the items, [..., items, C]; not modified.
        marks: numbers of steps after which the items are recorded.

    Returns:
        The items, and their state at each mark, or at their end if that came first.
    """
    order = np.argsort(-ranges.length, kind="stable")
    moved = not np.array_equal(order, np.arange(len(order)))
    begin, length, drawn = ranges.begin[order], ranges.length[order], ranges.drawn[order]
    states: dict[int, Floats] = {}
    back = np.argsort(order)
    if moved:
        head, x = head.select(order), np.asarray(x)[..., order, :]
    done = 0
    for stop in sorted({*length.tolist(), *(mark for mark in marks if mark < length.max())}):
        active = int(np.count_nonzero(length >= stop))
        if active < head.items:
            head = head.select(np.arange(active))
        if stop > done:
            step = begin[:active] + np.arange(done, stop)[:, None]
            x = _replaced(x, active, head, ranges.table, step, drawn[:active] + done)
            done = stop
        if stop in marks:
            states[stop] = np.asarray(x)[..., back, :] if moved else np.asarray(x)
    return (np.asarray(x)[..., back, :] if moved else x), states


def _replaced(
    x: Array, active: int, head: Denoiser, table: StepTable, step: Ints, drawn: Ints
) -> Array:
    """x with its first `active` items replaced."""
    if active == x.shape[-2]:
        return head.run_steps(table, step, drawn, x)
    whole = np.asarray(x)
    after = head.run_steps(table, step, drawn, np.ascontiguousarray(whole[..., :active, :]))
    return np.concatenate([np.asarray(after), whole[..., active:, :]], axis=-2)


def joined(tables: Sequence[StepTable]) -> StepTable:
    """Concatenate tables; a single table is returned unchanged."""
    return tables[0] if len(tables) == 1 else type(tables[0]).joined(tables)


def of_items(noise: Floats | None, items: Ints) -> Floats | None:
    """The noise of some items."""
    return None if noise is None else noise[..., items, :]


def noise_of_steps(noise: Floats, drawn: Ints, steps: int) -> Floats:
    """The noise of the next steps of items that have run `drawn` steps, [steps, ..., items, C].

    Args:
        noise: of all steps, [all steps, ..., items, C].
    """
    if (drawn == drawn[0]).all():
        return noise[drawn[0] : drawn[0] + steps]
    index = drawn + np.arange(steps)[:, None]
    index = index.reshape(steps, *(1,) * (noise.ndim - 3), len(drawn), 1)
    return np.take_along_axis(noise, index, axis=0)


def take(array: Array, items: Ints, axis: int) -> Array:
    """Some items of an array; the array itself, in its own memory, if they are all items."""
    if len(items) == array.shape[axis] and np.array_equal(items, np.arange(len(items))):
        return array
    return np.ascontiguousarray(np.take(np.asarray(array), items, axis=axis))
