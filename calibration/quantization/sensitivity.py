"""Selects the matmuls of a graph to leave out of quantisation, by their effect on its output."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .matmuls import Matmul

Measure = Callable[[Collection[Matmul]], float]
"""The error of a graph in which these matmuls are quantised."""

MARGIN = 0.9
"""Share of the tolerance used for planning, since squares of errors add up only approximately."""


@dataclass(frozen=True)
class Selection:
    """The matmuls of a graph that are quantised.

    Attributes:
        chosen: the quantised matmuls.
        left_out: the others, the most sensitive first.
        error: error of the graph.
        error_of_all: its error if nothing were left out.
        effects: error that each matmul causes alone, by node; empty if it was not needed.
    """

    chosen: Sequence[Matmul]
    left_out: Sequence[Matmul]
    error: float
    error_of_all: float
    effects: Mapping[str, float] = field(default_factory=dict)


def select(
    matmuls: Sequence[Matmul],
    measure: Measure,
    tolerance: float,
    measure_alone: Measure | None = None,
    advance: Callable[[int], object] = lambda count: None,
    first: Sequence[Matmul] = (),
) -> Selection:
    """Leave out as few matmuls as necessary to keep the graph's error within the tolerance.

    If all together are within it, nothing else is measured. Otherwise each matmul is quantised
    alone. Matmuls that exceed the tolerance alone are left out first, then those with the largest
    effect for their size. The rounding errors of different matmuls are independent, so their
    squares add up; the larger a matmul, the more time its quantisation saves.

    Args:
        measure_alone: a cheaper measure for single matmuls.
        advance: called with 1 after each matmul that was measured alone.
        first: a choice that is tried before single matmuls are measured, such as that of another
            graph with the same weights.
    """
    error_of_all = measure(matmuls)
    if error_of_all <= tolerance:
        return Selection(list(matmuls), [], error_of_all, error_of_all)
    if first and (error := measure(first)) <= tolerance:
        left_out = [matmul for matmul in matmuls if matmul not in first]
        return Selection(list(first), left_out, error, error_of_all)
    effects = {}
    for matmul in matmuls:
        effects[matmul.node] = (measure_alone or measure)([matmul])
        advance(1)

    def urgency(matmul: Matmul) -> tuple[bool, float]:
        effect = effects[matmul.node]
        return effect > tolerance, effect**2 / matmul.size

    ordered = sorted(matmuls, key=urgency, reverse=True)
    squares = np.array([effects[matmul.node] ** 2 for matmul in ordered])
    # The error after leaving out the first 0, 1, 2, ... of them, scaled to the measured error.
    remaining = np.append(squares[::-1].cumsum()[::-1], 0.0)
    remaining *= error_of_all**2 / remaining[0] if np.isfinite(remaining[0]) else 1.0
    out = max(1, int(np.argmax(remaining <= (MARGIN * tolerance) ** 2)))
    error = error_of_all
    while out < len(ordered):
        chosen = [matmul for matmul in matmuls if matmul not in ordered[:out]]
        error = measure(chosen)
        if error <= tolerance:
            return Selection(chosen, ordered[:out], error, error_of_all, effects)
        out += max(1, len(ordered) // 20)
    return Selection([], ordered, 0.0, error_of_all, effects)
