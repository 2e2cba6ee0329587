"""A plan whose backbone remembers, as a contender: full and cached passes timed apart."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.refresh import parse_refresh
from disa.runtime.stats import Stats

from .contenders import Floats, Lap, State

ALWAYS = "1:0"


class Remembering:
    """A plan on one of the engines, with the AR iterations in `refresh` as full passes.

    In each measured AR iteration it runs a full pass and, if there is an iteration before it, a
    cached pass behind a full one of that iteration. Both are timed with all that they do to caches.
    """

    def __init__(
        self,
        name: str,
        pipe: Pipeline,
        options: MaskedOptions,
        conditions: Sequence[Any],
        refresh: str,
    ) -> None:
        self.name = f"{name} refresh {refresh}"
        self.full_passes = parse_refresh(refresh)
        self._pipe, self._options, self._conditions = pipe, options, conditions

    def prepare(self, state: State) -> None:
        """Nothing: what an engine does for new shapes, it does in every image."""

    def run(self, state: State) -> Lap:
        full, head, sampled = self._step(self._samples(state, ALWAYS, state.index), state)
        if state.index == 0:
            return Lap(full, head, sampled)
        before = state.index - 1
        samples = self._samples(state, str(before), before)
        self._pipe.family.step(samples, Stats())
        cached, head, sampled = self._step(samples, state)
        return Lap(full, head, sampled, cached)

    def _samples(self, state: State, refresh: str, iteration: int) -> list[Any]:
        """The images of a race before an AR iteration, which starts from the state's tokens."""
        options = replace(self._options, refresh=refresh)
        images = range(len(self._conditions))
        requests = self._pipe.requests(self._conditions, options, 0, images)
        samples: list[Any] = list(self._pipe.family.start(requests, Stats()))
        known = sum(samples[0].counts[:iteration])
        for sample in samples:
            sample.iteration, sample.known = iteration, known
        samples[0].cohort.arrays["tokens"][: len(state.tokens)] = state.tokens
        return samples

    def _step(self, samples: list[Any], state: State) -> tuple[float, float, Floats]:
        """An AR iteration of the images: seconds of the backbone and of the head, and tokens."""
        tokens, stats = samples[0].cohort.arrays["tokens"], Stats()
        known = len(state.tokens)
        tokens[:known] = state.tokens
        start = time.perf_counter()
        self._pipe.family.step(samples, stats)
        whole = time.perf_counter() - start
        head = stats.seconds["head"]
        sampled = tokens[known : known + state.count].reshape(-1, tokens.shape[2]).copy()
        return whole - head - stats.seconds["noise"], head, sampled
