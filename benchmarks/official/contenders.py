"""What is timed side by side: AR iterations of the original way, and of a plan."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from disa.engines.plan.traits import Role
from disa.engines.session import Session
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.refresh import RefreshPlan, parse_refresh
from disa.runtime.sampling.sampler import StepTable
from disa.runtime.stats import Stats

from .mar import OfficialMAR

FP32, BF16 = "official fp32", "official bf16 autocast"
COMPILED = " compiled"
"""Names of the original way, and what is added to them behind torch.compile."""

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class State:
    """What an AR iteration starts from, in the runtime's order (token-major, as generated).

    Attributes:
        index: AR iteration, from 0.
        tokens: those known, [known, batch, C].
        positions: grid position of every token, [L, batch].
        count: tokens to predict now.
        labels: class of each image, [batch].
        table: denoising steps.
        scale: guidance scale; 1 for none.
        noise: [1 + steps, count * batch, C], rows (token, image).
    """

    index: int
    tokens: Floats
    positions: Ints
    count: int
    labels: Ints
    table: StepTable
    scale: float
    guided: bool
    noise: Floats

    @property
    def predicted(self) -> Ints:
        """Grid positions to predict, [count, batch]."""
        known = len(self.tokens)
        return self.positions[known : known + self.count]


@dataclass(frozen=True)
class Lap:
    """What an AR iteration cost, and its tokens [count * batch, C], rows (token, image).

    Attributes:
        cached_seconds: of a backbone pass that computes only what is new; None if there is none.
    """

    backbone_seconds: float
    head_seconds: float
    sampled: Floats
    cached_seconds: float | None = None


ALL_FULL = RefreshPlan(every=1)


class Official:
    """The original way, in PyTorch.

    Attributes:
        name: name of the contender.
        full_passes: the AR iterations in which the backbone computes all tokens.
    """

    full_passes = ALL_FULL

    def __init__(
        self,
        name: str,
        model: OfficialMAR,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.name = name
        self._model, self._dtype = model, dtype

    def prepare(self, state: State) -> None:
        """Do what is done once for such shapes: run until nothing is left to compile."""
        compiled = None
        while self._model.compiled and compiled != (compiled := graphs_compiled()):
            self.run(state)

    def run(self, state: State) -> Lap:
        positions, batch = state.positions, state.positions.shape[1]
        images = np.arange(batch)
        tokens = np.zeros((batch, len(positions), state.tokens.shape[2]), np.float32)
        masked = np.ones(tokens.shape[:2], bool)
        visible = positions[: len(state.tokens)]
        tokens[images, visible], masked[images, visible] = state.tokens, False
        predicted = np.zeros_like(masked)
        predicted[images, state.predicted] = True
        rows = grid_rows(state.predicted)
        noise, coefficients = state.noise[:, rows], state.table.coefficients
        known, mask, wanted, labels = (
            torch.from_numpy(array) for array in (tokens, masked, predicted, state.labels)
        )
        normals, timesteps, factors = (
            torch.from_numpy(array) for array in (noise, state.table.timesteps, coefficients)
        )
        cast = torch.autocast("cpu", self._dtype) if self._dtype else nullcontext()
        with torch.no_grad(), cast:
            start = time.perf_counter()
            z = self._model.condition(known, mask, wanted, labels, state.guided)
            middle = time.perf_counter()
            x = self._model.sample(z, normals, timesteps, factors, state.scale, state.guided)
            end = time.perf_counter()
        sampled = np.empty_like(state.noise[0])
        sampled[rows] = x.float().numpy()
        return Lap(middle - start, end - middle, sampled)


class Plans:
    """A plan on one of the engines, by the AR iterations that users run.

    With `refresh` its backbone is cached: in each measured AR iteration a full pass is timed and,
    if there is one before it, a cached pass behind a full one of that iteration.

    Args:
        refresh: the AR iterations that are full passes.
    """

    def __init__(
        self,
        name: str,
        pipe: Pipeline,
        options: MaskedOptions,
        conditions: Sequence[Any],
        refresh: str | None = None,
    ) -> None:
        self.name = f"{name} refresh {refresh}" if refresh else name
        self.full_passes = parse_refresh(refresh) if refresh else ALL_FULL
        self._cached_backbone = refresh is not None
        self._pipe, self._options, self._conditions = pipe, options, conditions

    def prepare(self, state: State) -> None:
        """Nothing: what an engine does for new shapes, it does in every image."""

    def run(self, state: State) -> Lap:
        always = "1:0" if self._cached_backbone else None
        full = self._step(self._samples(state, always, state.index), state)
        if not self._cached_backbone or state.index == 0:
            return full
        before = state.index - 1
        samples = self._samples(state, str(before), before)
        self._pipe.family.step(samples, Stats())
        cached = self._step(samples, state)
        passes = full.backbone_seconds, cached.backbone_seconds
        return replace(cached, backbone_seconds=passes[0], cached_seconds=passes[1])

    def _samples(self, state: State, refresh: str | None, iteration: int) -> list[Any]:
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

    def _step(self, samples: list[Any], state: State) -> Lap:
        """An AR iteration of the images, with all that it does to caches."""
        tokens, stats = samples[0].cohort.arrays["tokens"], Stats()
        known = len(state.tokens)
        tokens[:known] = state.tokens
        start = time.perf_counter()
        self._pipe.family.step(samples, stats)
        whole, head = time.perf_counter() - start, stats.seconds["head"]
        sampled = tokens[known : known + state.count].reshape(-1, tokens.shape[2]).copy()
        return Lap(whole - head - stats.seconds["noise"], head, sampled)


Contender = Official | Plans


def session_of(pipe: Pipeline, role: Role) -> Session:
    """The session of the graph that has a role."""
    (graph,) = pipe.plan.manifest.with_role(role)
    return pipe.sessions[graph.name]


def class_labels(batch: int) -> list[int]:
    """The classes of the images; which ones makes no difference."""
    return [image % 2 for image in range(batch)]


def graphs_compiled() -> int:
    """How many graphs torch.compile has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def grid_rows(predicted: Ints) -> Ints:
    """The rows (token, image) in the original's order: image by image, along the grid."""
    batch = predicted.shape[1]
    order = predicted.argsort(axis=0)
    rows: Ints = (order * batch + np.arange(batch)).T.reshape(-1)
    return rows
