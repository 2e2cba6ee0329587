"""The error of a cached backbone, for every distance from its last full pass.

First, images are generated with a full pass in every AR iteration. Then their iterations are
repeated from several places on, with one full pass at the place and none after it. Each iteration
gets the tokens of the first run, so that the state is the same. Its tokens are sampled from the
condition of this pass and from that of a full pass, with the same noise. The error is the energy
distance of the two, as for denoising steps. It is measured as a function of the AR iteration and of
the last full pass; passes before that one are assumed to have no effect.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ...engines.array_types import Doubles, Floats, Ints
from ...errors import DisaError
from ...runtime.families.masked.family import MaskedFamily
from ...runtime.generation import Request, generate
from ...runtime.pipeline import Pipeline
from ...runtime.sampling.head import Iteration
from ...runtime.sampling.schedule import FittedSchedule
from ...runtime.stats import Stats
from .dependence import STEPS, places_of
from .isotonic import falling
from .observe import PAIRS, by_image, check_finite, energy_distance
from .signals import Signal


@dataclass(frozen=True)
class RefreshErrors:
    """Errors of passes that reuse caches, and the time of both kinds of passes.

    Attributes:
        tokens: number of tokens that each AR iteration predicts, [iterations].
        places: AR iterations of the last full pass that were measured, ascending from 0, [places].
        error: energy distance of the tokens of each iteration to those of a full pass, in standard
            deviations of a token, [places, iterations]; 0 up to the full pass.
        half_width: half the width of the 95 % intervals, [places, iterations].
        full, reuse: seconds for an image of a full pass and of one that reuses, [iterations].
    """

    tokens: Ints
    places: Ints
    error: Doubles
    half_width: Doubles
    full: Doubles
    reuse: Doubles

    @cached_property
    def every(self) -> Doubles:
        """The error for a last full pass in every iteration, [iterations, iterations]."""
        count = len(self.tokens)
        found = np.zeros((count, count))
        for index in range(1, count):
            known = self.places < index
            places = [*self.places[known].tolist(), index]
            # The closer the full pass, the smaller the error.
            errors = falling(np.append(self.error[known, index], 0.0))
            found[:index, index] = np.interp(np.arange(index), places, np.maximum(errors, 0))
        return found


def measure_refresh(
    pipe: Pipeline,
    options: Any,
    conditions: Sequence[Any],
    tokens: Sequence[int],
    batch_size: int,
    seed: int,
    advance: Callable[[int], object] = lambda images: None,
) -> RefreshErrors:
    """Measure a plan with a cached backbone.

    Args:
        conditions: one for each image.
        tokens: number of tokens that each AR iteration predicts.
        advance: called with the number of images after each batch.

    Raises:
        DisaError: the plan has no such backbone, or samples are not finite.
    """
    family = check_cached_backbone(pipe)
    schedule = FittedSchedule((STEPS,) * len(tokens), tokens=tuple(tokens))
    steady = replace(
        options, schedule=schedule, num_iterations=len(tokens), tolerance=0.0, refresh=None
    )
    places = places_of(len(tokens))
    batches = []
    for start in range(0, len(conditions), batch_size):
        part = conditions[start : start + batch_size]
        images = range(start, start + len(part))
        with pipe.lock:
            requests = pipe.requests(part, steady, seed, images)
            batches.append(_Repetition(family, requests, seed + 1 + start).measure(places))
        advance(len(part))
    unit = np.sqrt(np.concatenate([batch.sampled for batch in batches]).var(axis=0).mean())
    values = np.concatenate([batch.distances for batch in batches], axis=-1) / unit
    signal = Signal.of(values.reshape(len(places) * len(tokens), -1))
    shape = (len(places), len(tokens))
    full, reuse = (
        np.median([getattr(batch, name) for batch in batches], axis=0) for name in ("full", "reuse")
    )
    # Passes were timed only where they were run.
    every = np.arange(len(tokens))
    return RefreshErrors(
        np.array(tokens, np.int64),
        places,
        np.maximum(signal.mean.reshape(shape), 0),
        signal.half_width.reshape(shape),
        np.interp(every, places, full),
        np.append(reuse[1:2], reuse[1:]) if len(tokens) > 1 else full,
    )


def check_cached_backbone(pipe: Pipeline) -> Any:
    """The family of a plan with a cached backbone.

    Raises:
        DisaError: the plan has none.
    """
    family = pipe.family
    if not isinstance(family, MaskedFamily) or "reuse" not in pipe.plan.manifest.graphs:
        raise DisaError(
            f"{pipe.plan.path} has no cached backbone: export a MAR or Harmon checkpoint "
            "with --cached-backbone"
        )
    return family


@dataclass(frozen=True)
class _Batch:
    """The measurement of one batch; see `RefreshErrors`. Seconds are for an image.

    Attributes:
        sampled: the tokens, [tokens * batch, C].
        distances: [places, iterations, batch].
        full: [places].
        reuse: [iterations]; 0 for the first.
    """

    sampled: Doubles
    distances: Doubles
    full: Doubles
    reuse: Doubles


class _Repetition:
    """Generates a batch of images, and repeats its AR iterations."""

    def __init__(self, family: Any, requests: Sequence[Request], seed: int) -> None:
        self.family, self.requests, self.seed = family, requests, seed
        self.samples = family.start(requests, Stats())
        generate(family, self.samples, Stats())
        self.tokens = np.array(np.asarray(self.samples[0].cohort.arrays["tokens"]))
        counts = self.samples[0].counts
        self.ends = np.cumsum(counts)
        self.known = self.ends - counts
        # The graphs are loaded before anything is timed.
        for graph in ("refresh", "reuse"):
            family.session(graph)

    def measure(self, places: Ints) -> _Batch:
        expected: list[list[Floats]] = []
        for index, (start, stop) in enumerate(zip(self.known, self.ends, strict=True)):
            found: list[list[Floats]] = []
            watch = partial(self._sample, index, found)
            predicted = range(int(start), int(stop))
            self.family.look_ahead(self.samples, int(start), predicted, Stats(), watch)
            expected += found
        batch = len(self.samples)
        distances = np.zeros((len(places), len(self.known), batch))
        full = np.zeros(len(places))
        reuse: list[list[float]] = [[] for _ in self.known]
        for row, place in enumerate(places.tolist()):
            for index, (again, seconds) in enumerate(self._from(place), start=place):
                if index == place:
                    full[row] = seconds / batch
                    continue
                check_finite(again, f"tokens of AR iteration {index + 1}")
                distances[row, index] = by_image(energy_distance(again, expected[index]), batch)
                reuse[index].append(seconds / batch)
        sampled = self.tokens.reshape(-1, self.tokens.shape[-1]).astype(np.float64)
        middle = np.array([np.median(seconds) if seconds else 0.0 for seconds in reuse])
        return _Batch(sampled, distances, full, middle)

    def _from(self, place: int) -> list[tuple[list[Floats], float]]:
        """Samples and seconds of the backbone in each iteration, from a full pass at `place` on."""
        # All requests share one options object, so that a watcher gets them in one call.
        options = replace(self.requests[0].options, refresh=str(place))
        requests = [replace(each, options=options) for each in self.requests]
        samples = self.family.start(requests, Stats())
        for sample in samples:
            sample.iteration, sample.known = place, int(self.known[place])
        target = samples[0].cohort.arrays["tokens"]
        if self.known[place]:
            target[0 : self.known[place]] = self.tokens[: self.known[place]]
        passes = []
        for index in range(place, len(self.known)):
            stats = Stats()
            found: list[list[Floats]] = []
            self.family.step(samples, stats, partial(self._sample, index, found))
            start, stop = int(self.known[index]), int(self.ends[index])
            samples[0].cohort.arrays["tokens"][start:stop] = self.tokens[start:stop]
            passes.append((found[0], stats.seconds["backbone"]))
        return passes

    def _sample(self, index: int, into: list[list[Floats]], iteration: Iteration) -> None:
        """Sample the tokens of an iteration; its noise is the same in every repetition."""
        rng = np.random.default_rng([self.seed, index])
        shape = (1 + len(iteration.table), *np.shape(iteration.sampled))
        noises = [rng.standard_normal(shape, np.float32) for _ in range(PAIRS)]
        into.append([np.asarray(iteration.denoise(iteration.table, noise)) for noise in noises])
