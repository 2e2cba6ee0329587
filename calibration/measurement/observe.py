"""Measures a batch of images while it is generated, in every AR iteration."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Doubles, Floats
from ...errors import DisaError
from ...runtime.sampling.flow import FlowTable
from ...runtime.sampling.head import Iteration
from ...runtime.sampling.schedule import Schedule
from ...runtime.stats import Stats
from .coupled_noise import coupled_noise
from .paths import curvature, path_table, trace

PATH_STEPS = 20
"""Steps of the paths whose curvature is measured."""
PAIRS = 2
"""Samples of each token for every step count, each coupled to a sample with many steps."""


@dataclass(frozen=True)
class Candidates:
    """The ways of denoising that are compared with many steps.

    Attributes:
        counts: step counts, ascending.
        base: schedule whose steps adaptive denoising may skip.
        iterations: number of AR iterations of an image.
        tolerances: tolerances of adaptive denoising.
    """

    counts: tuple[int, ...]
    base: Schedule
    iterations: int
    tolerances: tuple[float, ...] = ()


@dataclass(frozen=True)
class Observation:
    """The measurement of one AR iteration of one batch.

    Squared values are means over channels, in squared units of a token.

    Attributes:
        index: AR iteration, from 0.
        tokens: number of tokens that it predicts in each image.
        given: inputs of the head for each token: the conditions of both guidance halves and the
            guidance scale, [rows, inputs]; None for a flow head.
        sampled: the tokens, [rows, C], rows (token, image).
        mean: mean of repeated samples of each token, without `sampled`, [rows, C].
        guess_error: squared error of a flow head's prediction from pure noise, [batch]; None for
            other heads.
        variance: variance of repeated samples of a token, [batch].
        curvature: curvature of the denoising paths, [batch].
        distances: energy distance of each candidate count to the reference, [counts, batch].
        seconds: time of the head for each candidate count, [counts].
        calls: head calls of each candidate count, [counts].
        adaptive_distances: energy distance of each tolerance to the reference,
            [tolerances, batch].
        adaptive_rows: rows that the head computed for each tolerance and image,
            [tolerances, batch].
        backbone: seconds of the backbone for the batch.
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
    backbone: float

    def check_finite(self) -> None:
        """Raise DisaError if samples are not finite."""
        names = ("sampled", "variance", "curvature", "distances", "adaptive_distances")
        check_finite(
            [getattr(self, name) for name in names], f"tokens of AR iteration {self.index + 1}"
        )


class Observer:
    """A watcher of generation that samples the tokens of each AR iteration again.

    Args:
        candidates: compared with the many steps of the generation itself.
        seed: seed of the noise for the additional samples.
        stats: statistics of the generation.
    """

    def __init__(self, candidates: Candidates, seed: int, stats: Stats) -> None:
        self.candidates = candidates
        self._stats, self._backbone = stats, 0.0
        self._seeds = np.random.SeedSequence(seed)
        self._rng = np.random.default_rng(self._seeds)
        self.observations: list[Observation] = []

    def __call__(self, iteration: Iteration) -> None:
        """Measure an AR iteration."""
        sampled = np.array(np.asarray(iteration.sampled))
        batch = iteration.predicted.shape[1]
        backbone = self._stats.seconds.get("backbone", 0.0)
        noises = [self._noise(1 + len(iteration.table), sampled) for _ in range(PAIRS)]
        reference = ManySteps(
            iteration,
            noises,
            [np.asarray(iteration.denoise(iteration.table, noise)) for noise in noises],
            self._seeds.spawn(PAIRS),
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
            backbone - self._backbone,
        )
        self._backbone = backbone
        observation.check_finite()
        self.observations.append(observation)

    def _guess(self, iteration: Iteration) -> Floats:
        """A flow head's prediction of the token from pure noise: x - v at time 1."""
        noise = self._noise(2, np.asarray(iteration.sampled))
        return np.asarray(iteration.denoise(path_table(iteration, 1)[0], noise))

    def _noise(self, draws: int, like: Floats) -> Floats:
        return self._rng.standard_normal((draws, *like.shape), np.float32)


@dataclass(frozen=True)
class Compared:
    """The result of denoising with few steps, compared with many.

    Attributes:
        distance: energy distance, [batch].
        seconds, calls, rows: cost of the head for one sample of every token of the batch.
    """

    distance: Doubles
    seconds: float
    calls: float
    rows: float


@dataclass(frozen=True)
class ManySteps:
    """Samples with many steps, the noise that they were sampled from, and seeds for more of it."""

    iteration: Iteration
    noises: Sequence[Floats]
    samples: Sequence[Floats]
    seeds: Sequence[np.random.SeedSequence]

    def compare(self, steps: int, tolerance: float = 0.0) -> Compared:
        """Sample with fewer steps from the same noise, and compare."""
        table = self.iteration.table_of(steps)
        noises = [
            coupled_noise(noise, self.iteration.table, table, seed)
            for seed, noise in zip(self.seeds, self.noises, strict=True)
        ]
        stats = Stats()
        start = time.perf_counter()
        sampled = [
            np.asarray(self.iteration.denoise(table, noise, tolerance, stats)) for noise in noises
        ]
        seconds = time.perf_counter() - start
        return Compared(
            by_image(energy_distance(sampled, self.samples), self.iteration.predicted.shape[1]),
            seconds / len(sampled),
            stats.head_calls / len(sampled),
            stats.head_rows / len(sampled),
        )


def check_finite(arrays: Sequence[npt.NDArray[np.floating]], what: str) -> None:
    """Raise DisaError if not all numbers are finite."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise DisaError(
            f"{what} were not finite: the plan is damaged, or its sampling options are not usable"
        )


def inputs_of(iteration: Iteration) -> Floats:
    """The inputs of the head for each token: its conditions and the guidance scale."""
    conditions = np.asarray(iteration.condition)
    scale = np.full((conditions.shape[1], 1), iteration.guidance_scale, np.float32)
    return np.concatenate([*conditions, scale], axis=1)


def energy_distance(first: Sequence[Floats], second: Sequence[Floats]) -> Doubles:
    """Energy distance between two distributions, for each row of samples of them.

    2 E|X-Y| - E|X-X'| - E|Y-Y'|, which is zero only for equal distributions (Székely and Rizzo
    2013). The norm of a row is divided by the square root of the number of channels. The estimate
    is unbiased, so single values may be negative. Sample i of X and sample i of Y may depend on
    each other and are therefore not compared. If they nearly agree, the terms nearly cancel, and
    the estimate is far more precise than one from independent samples.

    Args:
        first: at least two samples [rows, C] of X.
        second: the same number of samples [rows, C] of Y.
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
    """The mean of the values of each image, [batch], from rows (token, image)."""
    mean: Doubles = values.reshape(-1, batch).astype(np.float64).mean(axis=0)
    return mean
