"""The denoising loop of an AR iteration: the head graph, once for each step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from .sampler import StepTable
from .stats import Stats

Floats = npt.NDArray[np.float32]


class Again(Protocol):
    """Draws the tokens of an AR iteration again."""

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
            noise: [1 + steps, tokens * batch, C]; the first is where denoising starts.
            tolerance: of adaptive steps; they need a table of the run's own sampler.
            stats: where the head's calls are counted.
        """
        ...


@dataclass(frozen=True)
class Iteration:
    """What one AR iteration did, for whoever watches a loop.

    Attributes:
        index: AR iteration, from 0.
        table: its denoising steps.
        guidance_scale: the scale used.
        predicted: grid positions it predicted, [tokens, batch].
        condition: what the head was given, [guidance, tokens * batch, width]; of FlowAR and xAR
            its own form of that.
        sampled: the tokens, [tokens * batch, C], rows (token, image).
        table_of: the table that the run's sampler has for a number of steps.
        denoise: draws the tokens again in the same state. It holds what the iteration was
            given, so it is for use while the loop waits.
    """

    index: int
    table: StepTable
    guidance_scale: float
    predicted: np.ndarray[Any, np.dtype[np.int64]]
    condition: Array
    sampled: Array
    table_of: Callable[[int], StepTable]
    denoise: Again


class Head:
    """The head and timestep graphs of a plan.

    Timesteps are embedded once for each step table and kept.
    """

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._session, self._timestep = sessions["head"], sessions["timestep"]
        self._embeddings: dict[bytes, Array] = {}

    def walk(
        self,
        table: StepTable,
        step: npt.NDArray[np.int64],
        condition: Array,
        guidance_scale: float,
        x: Array,
        noise: Array,
        stats: Stats,
    ) -> Array:
        """Take every row through steps of its own.

        Args:
            table: the steps of all rows.
            step: where in the table each row is, [steps, rows].
            condition: [guidance, rows, width].
            guidance_scale: the same for all rows.
            x: the rows now, [rows, C].
            noise: for each step, [steps, rows, C].

        Returns:
            The rows after the steps, [rows, C].
        """
        outputs = self._session.iterate(
            carry={"next_x": "x"},
            constants={
                "condition": condition,
                "embedding": self._embedding(table),
                "coefficients": table.coefficients,
                "guidance_scale": np.full(step.shape[1], guidance_scale, np.float32),
            },
            per_step={"step": step, "noise": noise},
            state={"x": x},
        )
        stats.head_calls += len(step)
        stats.head_rows += step.size
        return outputs["next_x"]

    def _embedding(self, table: StepTable) -> Array:
        key = table.timesteps.tobytes()
        if key not in self._embeddings:
            outputs = self._timestep.run({"timestep": table.timesteps})
            self._embeddings[key] = outputs["embedding"]
        return self._embeddings[key]
