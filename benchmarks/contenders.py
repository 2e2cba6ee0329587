"""What is timed side by side: AR iterations of the original way, and of a plan."""

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from disa.engines.session import Session
from disa.runtime.head import Head
from disa.runtime.sampler import StepTable
from disa.runtime.stats import Stats

from .official_model import OfficialMAR
from .timing import Clock

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
    """What an AR iteration cost, and its tokens [count * batch, C], rows (token, image)."""

    backbone_seconds: float
    head_seconds: float
    sampled: Floats


class Contender(Protocol):
    """A way to compute an AR iteration."""

    name: str

    def run(self, state: State) -> Lap:
        """Compute one iteration."""
        ...


class Official:
    """The original way, in PyTorch."""

    def __init__(
        self,
        name: str,
        model: OfficialMAR,
        dtype: torch.dtype | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.name = name
        self._model, self._dtype, self._clock = model, dtype, clock

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

    def __init__(
        self,
        name: str,
        sessions: Mapping[str, Session],
        classes: int,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.name, self._classes, self._clock = name, classes, clock
        self._backbone, self._head = sessions["backbone"], Head(sessions)

    def run(self, state: State) -> Lap:
        labels = state.labels[None]
        if state.guided:
            labels = np.stack([state.labels, np.full_like(state.labels, self._classes)])
        inputs: dict[str, Any] = {
            "tokens": state.tokens,
            "positions": state.positions,
            "predicted": state.predicted,
            "class_index": labels,
        }
        start = self._clock()
        condition = self._backbone.run(inputs)["condition"]
        middle = self._clock()
        step, noise = state.table.every_step(state.noise.shape[1]), state.noise
        result = np.asarray(
            self._head.walk(state.table, step, condition, state.scale, noise[0], noise[1:], Stats())
        )
        return Lap(middle - start, self._clock() - middle, result)


def grid_rows(predicted: Ints) -> Ints:
    """The rows (token, image) in the original's order: image by image, along the grid."""
    batch = predicted.shape[1]
    order = predicted.argsort(axis=0)
    return (order * batch + np.arange(batch)).T.reshape(-1)
