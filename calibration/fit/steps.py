"""From measured errors to the denoising steps of each AR iteration."""

from collections.abc import Callable

import numpy as np

from ...engines.array_types import Doubles
from ...runtime.sampling.schedule import Schedule
from ..measurement.tradeoff import TINY, Tradeoff

BISECTIONS = 80
PRICES = (-30.0, 30.0)
"""Logarithms of the least and the greatest price of cost in units of error."""


def fit_to_error(tradeoff: Tradeoff, error: float, kind: str) -> list[int]:
    """The cheapest steps whose mean error is at most `error`; the most steps if none are."""
    most = [int(tradeoff.counts[-1])] * len(tradeoff.tokens)
    steps = _at_last_price(tradeoff, kind, most, PRICES, lambda of: of[0] <= error)
    return _improved(tradeoff, steps, tradeoff.cost(kind), _contribution(tradeoff), error)


def fit_to_cost(tradeoff: Tradeoff, cost: float, kind: str) -> list[int]:
    """The steps of the least mean error that cost at most `cost`; the fewest if none do."""
    fewest = [int(tradeoff.counts[0])] * len(tradeoff.tokens)
    steps = _at_last_price(tradeoff, kind, fewest, PRICES[::-1], lambda of: of[1] <= cost)
    return _improved(tradeoff, steps, _contribution(tradeoff), tradeoff.cost(kind), cost)


def counts_of(schedule: Schedule, iterations: int) -> list[int]:
    """The steps of a schedule in each AR iteration."""
    return [schedule.steps(index, iterations) for index in range(iterations)]


def _contribution(tradeoff: Tradeoff) -> Doubles:
    """What each count of each iteration adds to the mean error, [iterations, counts]."""
    return tradeoff.error * tradeoff.share[:, None]


def _at_last_price(
    tradeoff: Tradeoff,
    kind: str,
    steps: list[int],
    prices: tuple[float, float],
    good: Callable[[tuple[float, float]], bool],
) -> list[int]:
    """The best steps at the last price, from the first of `prices` to the second, that is good.

    Args:
        steps: the result if no price is good.
        good: whether an error and a cost are acceptable.
    """
    near, far = prices
    for _ in range(BISECTIONS):
        price = (near + far) / 2
        found = _choose(tradeoff, kind, price)
        if good(tradeoff.of(found, kind)):
            steps, near = found, price
        else:
            far = price
    return steps


def _improved(
    tradeoff: Tradeoff, steps: list[int], gained: Doubles, paid: Doubles, limit: float
) -> list[int]:
    """Reduce the sum of `gained` while the sum of `paid` is at most `limit`.

    A single price finds only steps on the convex hull of cost and error. If few step counts are
    possible, the corners of the hull are far apart and part of the limit stays unused. It is used
    here, one change at a time: the change with the largest gain for its price.

    Args:
        gained, paid: for each AR iteration and count, [iterations, counts].
    """
    column = np.array(steps) - tradeoff.counts[0]
    rows = np.arange(len(column))
    while True:
        gain = gained[rows, column][:, None] - gained
        price = paid - paid[rows, column][:, None]
        possible = (gain > TINY) & (paid[rows, column].sum() + price <= limit)
        if not possible.any():
            return [int(count) for count in tradeoff.counts[column]]
        value = np.where(possible, gain / np.maximum(price, TINY), -1.0)
        row, count = np.unravel_index(value.argmax(), value.shape)
        column[row] = count


def _choose(tradeoff: Tradeoff, kind: str, price: float) -> list[int]:
    """The best steps if a unit of cost is worth e^price of error.

    With one price for all AR iterations, moving steps from one iteration to another gains nothing
    (Everett 1963, generalised Lagrange multipliers).
    """
    cost = tradeoff.cost(kind)
    total = _contribution(tradeoff) + np.exp(price) * cost / cost[:, -1].sum()
    return [int(count) for count in tradeoff.counts[total.argmin(axis=1)]]
