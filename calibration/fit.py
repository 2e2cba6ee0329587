"""From measured errors to the steps of each AR iteration.

The quality of a schedule is the energy distance between the tokens it draws and tokens drawn
with many steps from the same state, in units of the tokens' standard deviation, averaged over
all tokens of an image. It compares whole distributions of a token, not pairs of samples. A token
weighs as much as a change of it moves the whole image, itself and what is drawn after it (see
`carry`): errors of early tokens are handed on, those of the last ones are not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.schedule import Schedule
from .signals import CONFIDENCE, Batches, Signal, gather, token_variance

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SIGNIFICANT = 2.0
"""Standard errors from which an error counts as measured."""
SMOOTHING = 1 / 24
"""Width of the Gaussian over neighbouring AR iterations, as a share of their number."""
BISECTIONS = 80
PRICES = (-30.0, 30.0)
"""Logarithms of the least and the greatest price of cost in units of error."""
TINY = 1e-12


@dataclass(frozen=True)
class Tradeoff:
    """Error and cost of every step count in every AR iteration.

    Attributes:
        counts: step counts, ascending by one, [counts].
        error: energy distance to many steps, [iterations, counts]; falls with the count.
        calls: head calls times tokens of an image, [iterations, counts].
        seconds: time of the head for an image, [iterations, counts].
        tokens: tokens that each iteration predicts, [iterations].
        carry: how far an error of each iteration carries over, [iterations].
    """

    counts: Ints
    error: Doubles
    calls: Doubles
    seconds: Doubles
    tokens: Ints
    carry: Doubles

    @property
    def share(self) -> Doubles:
        """What the error of each iteration contributes to that of a schedule, [iterations]."""
        return shares(self.tokens, self.carry)

    def cost(self, kind: str) -> Doubles:
        """Cost by "calls" or by "time"."""
        return self.seconds if kind == "time" else self.calls

    def of(self, steps: Sequence[int], kind: str) -> tuple[float, float]:
        """Error and cost of a schedule; counts outside the measured ones take the nearest."""
        column = np.clip(np.asarray(steps), self.counts[0], self.counts[-1]) - self.counts[0]
        rows = np.arange(len(self.tokens))
        error = self.error[rows, column] @ self.share
        return float(error), float(self.cost(kind)[rows, column].sum())


@dataclass(frozen=True)
class AdaptivePoint:
    """What adaptive steps do with some tolerance; units as in `Tradeoff`.

    Attributes:
        error: mean energy distance to many steps over all tokens.
        half_width: of its 95 % interval.
        calls: head calls times tokens of an image.
    """

    tolerance: float
    error: float
    half_width: float
    calls: float


def shares(tokens: Ints, carry: Doubles) -> Doubles:
    """Weights of the AR iterations, which sum to 1."""
    weights: Doubles = tokens * carry / (tokens * carry).sum()
    return weights


def adaptive_points(
    batches: Batches, tolerances: Sequence[float], carry: Doubles
) -> tuple[AdaptivePoint, ...]:
    """Error and cost of adaptive steps, for each tolerance."""
    if not tolerances:
        return ()
    tokens = np.array([seen.tokens for seen in batches[0]])
    unit = np.sqrt(token_variance(batches))
    # [iterations, tolerances, images] to [tolerances, images]
    share = shares(tokens, carry)[:, None, None]
    errors = Signal.of((gather(batches, "adaptive_distances") / unit * share).sum(axis=0))
    rows = gather(batches, "adaptive_rows").sum(axis=0).mean(axis=1)
    return tuple(
        AdaptivePoint(tolerance, float(error), float(half), float(calls))
        for tolerance, error, half, calls in zip(
            tolerances, errors.mean, errors.half_width, rows, strict=True
        )
    )


def measure_tradeoff(batches: Batches, counts: Sequence[int], carry: Doubles) -> Tradeoff:
    """What the observations say about each step count from the least to the most of `counts`.

    Measured errors are smoothed over neighbouring AR iterations and made to fall with the
    count. Where an error can no longer be told from zero it goes on falling with the square of
    the count: the samplers are of first order, and the energy distance is a square.
    """
    tokens = np.array([seen.tokens for seen in batches[0]])
    values = gather(batches, "distances") / np.sqrt(token_variance(batches))
    mean, half = [], []
    for column in range(len(counts)):
        signal = Signal.of(values[:, column])
        mean.append(signal.mean)
        half.append(signal.half_width)
    kernel = _kernel(len(tokens)) * tokens
    kernel /= kernel.sum(axis=1, keepdims=True)
    error = kernel @ np.array(mean).T
    spread = np.sqrt(np.square(kernel) @ np.square(np.array(half).T / CONFIDENCE))
    falling = np.stack(
        [
            _extended(_falling(row), deviation, np.asarray(counts))
            for row, deviation in zip(error, spread, strict=True)
        ]
    )
    every = np.arange(counts[0], counts[-1] + 1)
    images = sum(len(batch[0].variance) for batch in batches)
    seconds = np.sum([[seen.seconds for seen in batch] for batch in batches], axis=0) / images
    calls = np.stack([seen.calls for seen in batches[0]])
    every_call = _interpolated(every, counts, calls, straight=True)
    return Tradeoff(
        every,
        np.exp(_interpolated(every, counts, np.log(falling))),
        every_call * tokens[:, None],
        _affine(calls, every_call, seconds),
        tokens,
        carry,
    )


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
    """The best steps at the price on the way between two at which they are good for the last time.

    Args:
        steps: what to take if none are.
        good: whether an error and a cost are.
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
    """`steps` with a smaller sum of `gained`, as far as the sum of `paid` stays within `limit`.

    One price finds only steps on the convex hull of cost and error. Where few step counts are
    possible its corners lie far apart, and what is left of the limit is spent here, each time
    on the change that gains the most for what it takes.

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


def counts_of(schedule: Schedule, iterations: int) -> list[int]:
    """The steps of a schedule in each AR iteration."""
    return [schedule.steps(index, iterations) for index in range(iterations)]


def _choose(tradeoff: Tradeoff, kind: str, price: float) -> list[int]:
    """The steps that are best when a unit of cost is worth e^price of error.

    With one price for all AR iterations no steps can be moved from one to another with a gain
    (Everett 1963, generalised Lagrange multipliers).
    """
    cost = tradeoff.cost(kind)
    total = _contribution(tradeoff) + np.exp(price) * cost / cost[:, -1].sum()
    return [int(count) for count in tradeoff.counts[total.argmin(axis=1)]]


def _kernel(iterations: int) -> Doubles:
    distance = np.subtract.outer(np.arange(iterations), np.arange(iterations))
    weights: Doubles = np.exp(-0.5 * np.square(distance / max(iterations * SMOOTHING, 1e-3)))
    return weights


def _falling(values: Doubles) -> Doubles:
    """The nearest values in squares that never rise (pool adjacent violators)."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            last, weight = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + last * weight) / (before[1] + weight)
            before[1] += weight
    return np.concatenate([np.full(int(weight), value) for value, weight in blocks])


def _extended(values: Doubles, deviation: Doubles, counts: npt.NDArray[np.int_]) -> Doubles:
    """`values` with the end that is lost in noise drawn on as counts^-2."""
    measured = np.flatnonzero(values > SIGNIFICANT * deviation)
    last = int(measured[-1]) if len(measured) else 0
    start = values[last] if len(measured) else max(float(deviation[0]), TINY)
    extended = values.copy()
    extended[last:] = start * np.square(counts[last] / counts[last:])
    return np.maximum(extended, TINY)


def _interpolated(
    every: Ints, counts: Sequence[int], values: Doubles, straight: bool = False
) -> Doubles:
    """Rows of `values` at `counts` for every count; along the logarithm unless `straight`."""
    x, known = (every, counts) if straight else (np.log(every), np.log(counts))
    return np.stack([np.interp(x, known, row) for row in values])


def _affine(calls: Doubles, at: Doubles, seconds: Doubles) -> Doubles:
    """Seconds at the calls `at`: a start and a time for each call, by least squares."""
    lines = []
    for known, wanted, measured in zip(calls, at, seconds, strict=True):
        slope, start = np.polyfit(known, measured, 1)
        lines.append(np.maximum(start + slope * wanted, TINY))
    return np.stack(lines)
