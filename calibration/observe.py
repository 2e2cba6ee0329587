"""What is measured while a batch of images is drawn, one AR iteration at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt

from ..errors import DisaError
from ..runtime.flow import FlowTable
from ..runtime.head import Iteration
from ..runtime.schedule import Schedule
from ..runtime.stats import Stats
from .coupling import coupled_noise
from .paths import curvature, path_table, trace

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

PATH_STEPS = 20
PAIRS = 2
"""Samples of each token with every count, each coupled to one with many steps."""


@dataclass(frozen=True)
class Candidates:
    """What is compared with many steps.

    Attributes:
        counts: step counts, ascending.
        base: steps that adaptive denoising chooses from.
        iterations: AR iterations of an image.
        tolerances: of adaptive denoising.
    """

    counts: tuple[int, ...]
    base: Schedule
    iterations: int
    tolerances: tuple[float, ...] = ()


@dataclass(frozen=True)
class Observation:
    """One AR iteration of one batch. Squares are means over channels, in token units.

    Attributes:
        index: AR iteration, from 0.
        tokens: tokens that it predicts in each image.
        given: what the head was given for each token, conditions of both guidance halves and
            the guidance scale, [rows, inputs]; None for a flow head.
        sampled: the tokens, [rows, C], rows (token, image).
        mean: mean of repeated samples of each token, `sampled` not among them, [rows, C].
        guess_error: squared error of a flow head's guess from pure noise, [batch]; else None.
        variance: variance of repeated samples of a token, [batch].
        curvature: how far the denoising paths bend, [batch].
        distances: energy distance of each candidate count to the reference, [counts, batch].
        seconds: time of the head for each candidate count, [counts].
        calls: head calls of each candidate count, [counts].
        adaptive_distances: energy distance of each tolerance, [tolerances, batch].
        adaptive_rows: rows that the head saw for each tolerance and image, [tolerances, batch].
    """

    index: int
    tokens: int
    given: Floats | None
    sampled: Floats
    mean: Floats
    guess_error: Doubles | None
    variance: Doubles
    curvature: Doubles
    distances: Doubles
    seconds: Doubles
    calls: Doubles
    adaptive_distances: Doubles
    adaptive_rows: Doubles

    def check_finite(self) -> None:
        """Raise DisaError if what was drawn is not finite."""
        for name in ("sampled", "variance", "curvature", "distances", "adaptive_distances"):
            if not np.isfinite(getattr(self, name)).all():
                raise DisaError(
                    f"tokens of AR iteration {self.index + 1} were not finite: the plan is broken, "
                    "or its sampling options are not usable"
                )


class Observer:
    """Watches a token loop: draws the tokens of each AR iteration again in the same state.

    Args:
        candidates: to be compared with the many steps that the loop takes.
        seed: of the noise for all further samples.
    """

    def __init__(self, candidates: Candidates, seed: int) -> None:
        self.candidates = candidates
        self._rng = np.random.default_rng(seed)
        self.observations: list[Observation] = []

    def __call__(self, iteration: Iteration) -> None:
        """Measure an AR iteration."""
        sampled = np.array(np.asarray(iteration.sampled))
        batch = iteration.predicted.shape[1]
        noises = [self._noise(1 + len(iteration.table), sampled) for _ in range(PAIRS)]
        reference = Reference(
            iteration,
            noises,
            [np.asarray(iteration.denoise(iteration.table, noise)) for noise in noises],
        )
        counted = [reference.compare(count) for count in self.candidates.counts]
        steps = self.candidates.base.steps(iteration.index, self.candidates.iterations)
        adapted = [reference.compare(steps, value) for value in self.candidates.tolerances]
        times, points = trace(iteration, self._noise(1, sampled)[0], PATH_STEPS)
        given, guess = None, None
        if isinstance(iteration.table, FlowTable):
            guess = by_image(np.square(self._guess(iteration) - sampled).mean(axis=1), batch)
        else:
            given = inputs_of(iteration)
        repeated = [sampled, *reference.samples]
        observation = Observation(
            iteration.index,
            len(sampled) // batch,
            given,
            sampled,
            np.mean(reference.samples, axis=0),
            guess,
            by_image(np.var(repeated, axis=0, ddof=1).mean(axis=1), batch),
            by_image(curvature(times, points), batch),
            np.array([each.distance for each in counted]),
            np.array([each.seconds for each in counted]),
            np.array([each.calls for each in counted], np.float64),
            np.array([each.distance for each in adapted]).reshape(-1, batch),
            np.array([[each.rows / batch] * batch for each in adapted]).reshape(-1, batch),
        )
        observation.check_finite()
        self.observations.append(observation)

    def _guess(self, iteration: Iteration) -> Floats:
        """The token as a flow head sees it in pure noise: x - v at time 1, one step to the end."""
        noise = self._noise(2, np.asarray(iteration.sampled))
        return np.asarray(iteration.denoise(path_table(iteration, 1)[0], noise))

    def _noise(self, draws: int, like: Floats) -> Floats:
        return self._rng.standard_normal((draws, *like.shape), np.float32)


@dataclass(frozen=True)
class Compared:
    """A way to denoise against many steps.

    Attributes:
        distance: energy distance, [batch].
        seconds, calls, rows: of the head for one sample of every token of the batch.
    """

    distance: Doubles
    seconds: float
    calls: float
    rows: float


@dataclass(frozen=True)
class Reference:
    """Samples with many steps, and the noise that they come from."""

    iteration: Iteration
    noises: Sequence[Floats]
    samples: Sequence[Floats]

    def compare(self, steps: int, tolerance: float = 0.0) -> Compared:
        """Draw with a number of steps, from the noise of the samples."""
        table = self.iteration.table_of(steps)
        noises = [
            coupled_noise(noise, self.iteration.table, table, seed)
            for seed, noise in enumerate(self.noises)
        ]
        stats = Stats()
        start = time.perf_counter()
        drawn = [
            np.asarray(self.iteration.denoise(table, noise, tolerance, stats)) for noise in noises
        ]
        seconds = time.perf_counter() - start
        return Compared(
            by_image(energy_distance(drawn, self.samples), self.iteration.predicted.shape[1]),
            seconds / len(drawn),
            stats.head_calls / len(drawn),
            stats.head_rows / len(drawn),
        )


def inputs_of(iteration: Iteration) -> Floats:
    """All that the head is told of a token: its conditions, and how they are weighed."""
    conditions = np.asarray(iteration.condition)
    scale = np.full((conditions.shape[1], 1), iteration.guidance_scale, np.float32)
    return np.concatenate([*conditions, scale], axis=1)


def energy_distance(first: Sequence[Floats], second: Sequence[Floats]) -> Doubles:
    """Energy distance between two distributions, for each row of samples of them.

    2 E|X-Y| - E|X-X'| - E|Y-Y'|, zero only for equal distributions (Székely and Rizzo 2013),
    with the norm of a row divided by the root of its channels. The estimate has no bias, so
    single values may be negative. Sample i of X and sample i of Y may depend on each other and
    are not compared. Where they nearly agree the four terms nearly cancel, and the estimate is
    far more precise than one from independent samples.

    Args:
        first: samples [rows, C] of X, at least two.
        second: as many samples [rows, C] of Y.
    """

    def mean_norm(pairs: Sequence[tuple[Floats, Floats]]) -> Doubles:
        norms = [np.sqrt(np.square(a - b, dtype=np.float64).mean(axis=1)) for a, b in pairs]
        mean: Doubles = np.mean(norms, axis=0)
        return mean

    places = permutations(range(len(first)), 2)
    across = mean_norm([(first[i], second[j]) for i, j in places])
    within = mean_norm(list(combinations(first, 2))) + mean_norm(list(combinations(second, 2)))
    return 2 * across - within


def by_image(values: npt.NDArray[np.floating], batch: int) -> Doubles:
    """Values of rows (token, image) as a mean for each image, [batch]."""
    mean: Doubles = values.reshape(-1, batch).astype(np.float64).mean(axis=0)
    return mean
