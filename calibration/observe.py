"""What is measured while a batch of images is drawn, one AR iteration at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

from ..runtime.flow import FlowTable
from ..runtime.head import Iteration
from ..runtime.sampler import StepTable
from .paths import curvature, path_table, trace

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

PATH_STEPS = 20
CANDIDATE_DRAWS = 2


@dataclass(frozen=True)
class Observation:
    """One AR iteration of one batch. Squares are means over channels, in token units.

    Attributes:
        index: AR iteration, from 0.
        tokens: tokens that it predicts in each image.
        condition: what the backbone gave for each token, [rows, W]; None for a flow head.
        sampled: the tokens, [rows, C], rows (token, image).
        guess_error: squared error of a flow head's guess from pure noise, [batch]; else None.
        variance: variance of repeated samples of a token, [batch].
        curvature: how far the denoising paths bend, [batch].
        distances: energy distance of each candidate count to the reference, [counts, batch].
        seconds: time of the head for each candidate count, [counts].
        calls: head calls of each candidate count, [counts].
    """

    index: int
    tokens: int
    condition: Floats | None
    sampled: Floats
    guess_error: Doubles | None
    variance: Doubles
    curvature: Doubles
    distances: Doubles
    seconds: Doubles
    calls: Doubles


class Observer:
    """Watches a token loop: draws the tokens of each AR iteration again in the same state.

    Args:
        counts: step counts to be compared with the many steps that the loop takes.
        repeats: samples of each token with many steps, the loop's own one among them.
        seed: of the noise for all further samples.
    """

    def __init__(self, counts: Sequence[int], repeats: int, seed: int) -> None:
        self.counts, self.repeats = tuple(counts), repeats
        self._rng = np.random.default_rng(seed)
        self.observations: list[Observation] = []

    def __call__(self, iteration: Iteration) -> None:
        """Measure an AR iteration."""
        sampled = np.asarray(iteration.sampled)
        batch = iteration.predicted.shape[1]
        many = len(iteration.table)
        references = [sampled] + [
            self._draw(iteration, iteration.table) for _ in range(self.repeats - 1)
        ]
        distances, seconds, calls = [], [], []
        for count in self.counts:
            table = iteration.table_of(count)
            start = time.perf_counter()
            drawn = [self._draw(iteration, table) for _ in range(CANDIDATE_DRAWS)]
            seconds.append((time.perf_counter() - start) / CANDIDATE_DRAWS)
            calls.append(min(len(table), many))
            distances.append(by_image(energy_distance(drawn, references), batch))
        times, points = trace(iteration, self._noise(1, sampled)[0], PATH_STEPS)
        condition, guess = None, None
        if isinstance(iteration.table, FlowTable):
            guess = by_image(np.square(self._guess(iteration) - sampled).mean(axis=1), batch)
        else:
            condition = np.array(np.asarray(iteration.condition)[0])
        self.observations.append(
            Observation(
                iteration.index,
                len(sampled) // batch,
                condition,
                sampled.copy(),
                guess,
                by_image(np.var(references, axis=0, ddof=1).mean(axis=1), batch),
                by_image(curvature(times, points), batch),
                np.array(distances),
                np.array(seconds),
                np.array(calls, np.float64),
            )
        )

    def _draw(self, iteration: Iteration, table: StepTable) -> Floats:
        noise = self._noise(1 + len(table), np.asarray(iteration.sampled))
        return np.asarray(iteration.denoise(table, noise))

    def _guess(self, iteration: Iteration) -> Floats:
        """The token as a flow head sees it in pure noise: x - v at time 1, one step to the end."""
        noise = self._noise(2, np.asarray(iteration.sampled))
        return np.asarray(iteration.denoise(path_table(iteration, 1)[0], noise))

    def _noise(self, draws: int, like: Floats) -> Floats:
        return self._rng.standard_normal((draws, *like.shape), np.float32)


def energy_distance(first: Sequence[Floats], second: Sequence[Floats]) -> Doubles:
    """Energy distance between two distributions, for each row of independent samples of them.

    2 E|X-Y| - E|X-X'| - E|Y-Y'|, zero only for equal distributions (Székely and Rizzo 2013),
    with the norm of a row divided by the root of its channels. It is estimated without bias
    from as few as two samples of either, so single values may be negative.

    Args:
        first: samples [rows, C] of X, at least two.
        second: samples [rows, C] of Y, at least two.
    """

    def mean_norm(pairs: Sequence[tuple[Floats, Floats]]) -> Doubles:
        norms = [np.sqrt(np.square(a - b, dtype=np.float64).mean(axis=1)) for a, b in pairs]
        mean: Doubles = np.mean(norms, axis=0)
        return mean

    across = mean_norm(list(product(first, second)))
    within = mean_norm(list(combinations(first, 2))) + mean_norm(list(combinations(second, 2)))
    return 2 * across - within


def by_image(values: npt.NDArray[np.floating], batch: int) -> Doubles:
    """Values of rows (token, image) as a mean for each image, [batch]."""
    mean: Doubles = values.reshape(-1, batch).astype(np.float64).mean(axis=0)
    return mean
