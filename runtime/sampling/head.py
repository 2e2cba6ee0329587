"""The head of MAR and Harmon, and the record of an AR iteration for observers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from ...engines.array_types import Floats, Ints
from ...engines.session import Array, Session
from ...recent import Recent
from ..stats import Stats
from .denoise import noise_of_steps, take
from .sampler import StepTable

MAX_EMBEDDED = 8192
"""Timesteps of all tables whose embeddings are cached; MAR-H's take 50 MB.

A run with 50:5 steps has 1,265 of them, but a server makes a new table for each mixture of images.
"""

FEW_ROWS = 24
"""Rows of a step, of both guidance halves, up to which its time is that of reading weights."""

ROWS_AT_ONCE = 256
"""Rows of all steps whose modulations are computed at once; in MAR-H these take 60 MB."""


class Again(Protocol):
    """Samples the tokens of an AR iteration again."""

    def __call__(
        self,
        table: StepTable,
        noise: Floats,
        tolerance: float = 0.0,
        stats: Stats | None = None,
    ) -> Array:
        """The tokens, [tokens * batch, C].

        Args:
            table: the steps, of any sampler that the head knows.
            noise: [1 + steps, tokens * batch, C]; denoising starts from the first.
            tolerance: tolerance of adaptive steps, which need a table of the run's own sampler.
            stats: counts the head's calls.
        """
        ...


@dataclass(frozen=True)
class Iteration:
    """The record of one AR iteration of samples with equal options, for observers.

    Attributes:
        index: AR iteration, from 0.
        table: its denoising steps.
        guidance_scale: the scale used.
        predicted: grid positions it predicted, [tokens, batch].
        condition: condition of the head, [guidance, tokens * batch, width]; FlowAR and xAR have
            their own form.
        sampled: the tokens, [tokens * batch, C], rows (token, image).
        table_of: the table of the run's sampler for a number of steps.
        denoise: samples the tokens again from the same state. It refers to the arrays of the
            iteration, so it may only be called while the watcher runs.
    """

    index: int
    table: StepTable
    guidance_scale: float
    predicted: Ints
    condition: Array
    sampled: Array
    table_of: Callable[[int], StepTable]
    denoise: Again


class Head:
    """The graphs of a plan's head. If there are two for a step, each is loaded when it is needed.

    Timesteps are embedded once for each step table and cached.

    Args:
        session: returns the session of a graph.
        modulated: whether there are graphs for calls of few rows, which engines on the host's
            processor run: `modulation` and `modulated_head`.
    """

    def __init__(self, session: Callable[[str], Session], modulated: bool = False) -> None:
        self._session, self._timestep = session, session("timestep")
        self._offered = modulated
        self._embeddings: Recent[Array] = Recent(MAX_EMBEDDED, weigh=len)
        if not self._modulated:
            # It is needed in any case, and only loaded graphs say how they run.
            session("head")

    @cached_property
    def _modulated(self) -> bool:
        return self._offered and isinstance(self._timestep.empty((1,), np.float32), np.ndarray)

    def parts(self, rows: int, steps: int) -> list[slice] | None:
        """The steps whose modulations are computed together; None if each step computes its own.

        With few rows, the time of a step is that of reading its weights, and three fifths of these
        compute modulations. With more rows, arithmetic takes longer than reading.

        Args:
            rows: number of rows of a step, of both guidance halves.
            steps: number of consecutive steps.
        """
        if not self._modulated or steps < 2 or rows > FEW_ROWS:
            return None
        count = -(-steps // (ROWS_AT_ONCE // rows))
        edges = [steps * part // count for part in range(count + 1)]
        return [slice(*pair) for pair in pairwise(edges)]

    @property
    def step(self) -> Session:
        """A denoising step."""
        return self._session("head")

    @property
    def modulation(self) -> Session:
        """The modulations of some steps."""
        return self._session("modulation")

    @property
    def modulated_step(self) -> Session:
        """A denoising step with its modulations given."""
        return self._session("modulated_head")

    def embedding(self, table: StepTable) -> Array:
        """The embedded timesteps of a table, [steps, width]."""
        key = table.timesteps.tobytes()
        return self._embeddings.get(
            key, lambda: self._timestep.run({"timestep": table.timesteps})["embedding"]
        )


@dataclass(frozen=True)
class HeadRows:
    """The rows of an AR iteration, each of which can leave; see `denoise.Denoiser`.

    Attributes:
        condition: [guidance, rows, width].
        guidance_scale: [rows].
        step_noise: noise that each step adds, [steps, rows, C].
        stats: counts the head's calls.
    """

    head: Head
    condition: Array
    guidance_scale: Floats
    step_noise: Floats
    stats: Stats

    @property
    def items(self) -> int:
        return len(self.guidance_scale)

    def run_steps(self, table: StepTable, step: Ints, drawn: Ints, x: Array) -> Array:
        """See `Denoiser.run_steps`."""
        noise = noise_of_steps(self.step_noise, drawn, len(step))
        parts = self.head.parts(len(self.condition) * self.items, len(step))
        if parts is None:
            of_rows = {"condition": self.condition, "embedding": self.head.embedding(table)}
            x = self._iterate(self.head.step, table, of_rows, {"step": step, "noise": noise}, x)
        for part in parts or ():
            per_step = {"step": step[part], "noise": noise[part]}
            per_step |= {"modulation": self._modulation(table, step[part])}
            x = self._iterate(self.head.modulated_step, table, {}, per_step, x)
        self.stats.head_calls += len(step)
        self.stats.head_rows += step.size
        return x

    def _modulation(self, table: StepTable, step: Ints) -> Array:
        """The modulations of some steps, [steps, guidance, rows, ...]."""
        inputs = {
            "condition": self.condition,
            "embedding": self.head.embedding(table),
            "step": step,
        }
        return self.head.modulation.run(inputs)["modulation"]

    def _iterate(
        self,
        session: Session,
        table: StepTable,
        of_rows: Mapping[str, Array],
        per_step: Mapping[str, Array],
        x: Array,
    ) -> Array:
        constants = {"coefficients": table.coefficients, "guidance_scale": self.guidance_scale}
        return session.iterate(
            carry={"next_x": "x"},
            constants={**of_rows, **constants},
            per_step=per_step,
            state={"x": x},
        )["next_x"]

    def noise(self, draw: int) -> Floats:
        noise: Floats = self.step_noise[draw]
        return noise

    def select(self, items: Ints) -> "HeadRows":
        return replace(
            self,
            condition=take(self.condition, items, 1),
            guidance_scale=self.guidance_scale[items],
            step_noise=take(self.step_noise, items, 1),
        )
