"""What is timed side by side: AR iterations of the original way, and of a plan."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from disa.engines.plan.traits import Role
from disa.engines.session import Session
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.head import Head, HeadRows
from disa.runtime.sampling.refresh import RefreshPlan
from disa.runtime.sampling.sampler import StepTable
from disa.runtime.stats import Stats

from ..records import Clock
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


class Contender(Protocol):
    """A way to compute an AR iteration."""

    name: str
    full_passes: RefreshPlan
    """The AR iterations in which the backbone computes all tokens."""

    def prepare(self, state: State) -> None:
        """Do what is done once for such shapes, such as compiling."""
        ...

    def run(self, state: State) -> Lap:
        """Compute one iteration."""
        ...


ALL_FULL = RefreshPlan(every=1)


class Official:
    """The original way, in PyTorch."""

    full_passes = ALL_FULL

    def __init__(
        self,
        name: str,
        model: OfficialMAR,
        dtype: torch.dtype | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.name = name
        self._model, self._dtype, self._clock = model, dtype, clock

    def prepare(self, state: State) -> None:
        """Run until torch.compile has nothing left to compile."""
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
        draws, timesteps, factors = (
            torch.from_numpy(array) for array in (noise, state.table.timesteps, coefficients)
        )
        cast = torch.autocast("cpu", self._dtype) if self._dtype else nullcontext()
        with torch.no_grad(), cast:
            start = self._clock()
            z = self._model.condition(known, mask, wanted, labels, state.guided)
            middle = self._clock()
            x = self._model.sample(z, draws, timesteps, factors, state.scale, state.guided)
            end = self._clock()
        sampled = np.empty_like(state.noise[0])
        sampled[rows] = x.float().numpy()
        return Lap(middle - start, end - middle, sampled)


class Plans:
    """A plan on one of the engines."""

    full_passes = ALL_FULL

    def __init__(
        self,
        name: str,
        pipe: Pipeline,
        options: MaskedOptions,
        conditions: Sequence[Any],
        clock: Clock = time.perf_counter,
    ) -> None:
        self.name, self._clock = name, clock
        self._backbone = session_of(pipe, Role.ITERATION)
        self._head = Head(pipe.sessions.__getitem__, "modulated_head" in pipe.sessions)
        requests = pipe.requests(conditions, options, 0, range(len(conditions)))
        # What is the same in every AR iteration: classes, or prompts that have been read.
        sample: Any = pipe.family.start(requests, Stats())[0]
        self._constants: dict[str, Any] = sample.cohort.constants

    def prepare(self, state: State) -> None:
        """Nothing: what an engine does for new shapes, it does in every image."""

    def run(self, state: State) -> Lap:
        inputs: dict[str, Any] = {
            "tokens": state.tokens,
            "positions": state.positions,
            "predicted": state.predicted,
            **self._constants,
        }
        start = self._clock()
        condition = self._backbone.run(inputs)["condition"]
        middle = self._clock()
        items, noise = state.noise.shape[1], state.noise
        scale = np.full(items, state.scale, np.float32)
        rows = HeadRows(self._head, condition, scale, noise[1:], Stats())
        step = np.repeat(np.arange(len(state.table))[:, None], items, axis=1)
        drawn = np.zeros(items, np.int64)
        result = np.asarray(rows.run_steps(state.table, step, drawn, noise[0]))
        return Lap(middle - start, self._clock() - middle, result)


def session_of(pipe: Pipeline, role: Role) -> Session:
    """The session of the graph that has a role."""
    (graph,) = pipe.plan.manifest.with_role(role)
    return pipe.sessions[graph.name]


def class_labels(batch: int) -> list[int]:
    """The classes that are drawn; which ones makes no difference."""
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
