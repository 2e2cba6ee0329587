"""Error and cost of every step count in every AR iteration.

The error of a step count is the energy distance between tokens sampled with it and tokens sampled
with many steps from the same state, in standard deviations of a token. It compares distributions
of a token, not pairs of samples. The error of a schedule is the mean over all tokens of an image.
Each token is weighted by how much a change of it changes the whole image (see
`error_propagation`): errors of early tokens affect all later tokens, errors of the last ones none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Doubles, Ints
from .isotonic import falling
from .signals import CONFIDENCE, Batches, Signal, gather, token_variance

SIGNIFICANT = 2.0
"""Standard errors from which an error counts as measured."""
SMOOTHING = 1 / 24
"""Width of the Gaussian over neighbouring AR iterations, as a share of their number."""
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
        carry: weight of an error in each iteration, from its effect on the whole image,
            [iterations].
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
        """Error and cost of a schedule.

        Beyond the largest measured count the error is extrapolated with the inverse square of the
        count, as in `measure_tradeoff`, and the cost in proportion to it.
        """
        least, most = int(self.counts[0]), int(self.counts[-1])
        column = np.clip(np.asarray(steps), least, most) - least
        beyond = np.maximum(np.asarray(steps) / most, 1.0)
        rows = np.arange(len(self.tokens))
        error = (self.error[rows, column] / np.square(beyond)) @ self.share
        return float(error), float((self.cost(kind)[rows, column] * beyond).sum())


@dataclass(frozen=True)
class AdaptivePoint:
    """Error and cost of adaptive steps with some tolerance; units as in `Tradeoff`.

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
    """Error and cost of every step count from the least to the most of `counts`.

    Measured errors are smoothed over neighbouring AR iterations and made to fall with the count.
    Beyond the last count whose error differs significantly from zero, the error is extrapolated
    with the inverse square of the count: the samplers are of first order, and the energy distance
    is quadratic in small differences.

    Args:
        counts: the step counts that were observed, ascending.
        carry: as in `Tradeoff`.
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
    errors = np.stack(
        [
            _extended(falling(row), deviation, np.asarray(counts))
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
        np.exp(_interpolated(every, counts, np.log(errors))),
        every_call * tokens[:, None],
        _affine(calls, every_call, seconds),
        tokens,
        carry,
    )


def _kernel(iterations: int) -> Doubles:
    """Weights of neighbouring iterations, [iterations, iterations]."""
    distance = np.subtract.outer(np.arange(iterations), np.arange(iterations))
    weights: Doubles = np.exp(-0.5 * np.square(distance / max(iterations * SMOOTHING, 1e-3)))
    return weights


def _extended(values: Doubles, deviation: Doubles, counts: npt.NDArray[np.int_]) -> Doubles:
    """`values`, extrapolated as counts^-2 beyond the last significant one."""
    measured = np.flatnonzero(values > SIGNIFICANT * deviation)
    last = int(measured[-1]) if len(measured) else 0
    start = values[last] if len(measured) else max(float(deviation[0]), TINY)
    extended = values.copy()
    extended[last:] = start * np.square(counts[last] / counts[last:])
    return np.maximum(extended, TINY)


def _interpolated(
    every: Ints, counts: Sequence[int], values: Doubles, straight: bool = False
) -> Doubles:
    """Rows of `values`, known at `counts`, for every count.

    Interpolation is linear in the logarithm of the count, and in the count itself if `straight`.
    """
    x, known = (every, counts) if straight else (np.log(every), np.log(counts))
    return np.stack([np.interp(x, known, row) for row in values])


def _affine(calls: Doubles, at: Doubles, seconds: Doubles) -> Doubles:
    """Seconds for `at` calls: a constant plus a time for each call, by least squares.

    More calls do not take less time; if they seem to, that is noise.
    """
    lines = []
    for known, wanted, measured in zip(calls, at, seconds, strict=True):
        slope = max(np.polyfit(known, measured, 1)[0], 0.0)
        start = measured.mean() - slope * known.mean()
        lines.append(np.maximum(start + slope * wanted, TINY))
    return np.stack(lines)
