"""The loop of masked autoregressive generation, which MAR and Harmon share."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from ..errors import DisaError
from .adaptive import denoise, take
from .head import Floats, Head, Iteration
from .noise import NoiseSource
from .sampler import StepTable, respaced_table
from .settings import Settings
from .stats import Stats

Ints = npt.NDArray[np.int64]
Watcher = Callable[[Iteration], None]


class MaskedLoop:
    """A random order, more tokens each AR iteration, all of them denoised at once.

    Args:
        sessions: the plan's graphs by name.
        channels: channels of a token, C.
    """

    def __init__(self, sessions: Mapping[str, Session], channels: int) -> None:
        self._backbone = sessions["backbone"]
        self._head = Head(sessions)
        self.channels = channels

    def run(
        self,
        constants: Mapping[str, Array],
        length: int,
        batch: int,
        settings: Settings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        """Draw the tokens of a batch of images.

        Args:
            constants: what the backbone is told besides tokens and positions.
            length: tokens of an image, L.
            watch: called after each AR iteration.

        Returns:
            Tokens in generation order [L, batch, C] and their grid positions [L, batch].
        """
        counts = prediction_counts(length, settings.iterations)
        positions = noise.order(length)
        tokens = self._backbone.empty((length, batch, self.channels), np.float32)
        known = 0
        for index, count in enumerate(counts):
            table = settings.table(index)
            with stats.timed("noise"):
                draws = noise.gaussian(index, 1 + len(table), (count, batch, self.channels))
            predicted = positions[known : known + count]
            step = {"tokens": tokens[:known], "positions": positions, "predicted": predicted}
            with stats.timed("backbone"):
                condition = self._backbone.run({**constants, **step})["condition"]
            # The official rule leaves one token masked in name even after the last iteration.
            scale = settings.guidance(min(known + count, length - 1), length)
            again = partial(self._denoised, condition, scale, settings)
            with stats.timed("head"):
                rows = draws.reshape(1 + len(table), count * batch, self.channels)
                sampled = again(table, rows, settings.tolerance, stats)
            tokens[known : known + count] = sampled.reshape(count, batch, self.channels)
            known += count
            if watch:
                watch(
                    Iteration(
                        index,
                        table,
                        scale,
                        predicted,
                        condition,
                        sampled,
                        settings.table_of,
                        again,
                    )
                )
        return tokens, positions

    def _denoised(
        self,
        condition: Array,
        scale: float,
        settings: Settings,
        table: StepTable,
        noise: Floats,
        tolerance: float = 0.0,
        stats: Stats | None = None,
    ) -> Array:
        respaced = partial(respaced_table, settings.sampler, temperature=settings.temperature)
        rows = Rows(self._head, respaced, condition, scale, noise[1:], stats or Stats())
        return denoise(rows, table, tolerance, noise[0])


@dataclass(frozen=True)
class Rows:
    """The rows of an AR iteration, each of which can leave the batch.

    Attributes:
        respaced: the table of the run's sampler for some timesteps, ascending.
        condition: [guidance, rows, width].
        step_noise: what each step adds, [steps, rows, C].
        stats: where the head's calls are counted.
    """

    head: Head
    respaced: Callable[[Sequence[int]], StepTable]
    condition: Array
    guidance_scale: float
    step_noise: Floats
    stats: Stats

    @property
    def items(self) -> int:
        return self.step_noise.shape[1]

    def walk(self, table: StepTable, step: Ints, draw: int, x: Array) -> Array:
        noise = self.step_noise[draw : draw + len(step)]
        return self.head.walk(
            table, step, self.condition, self.guidance_scale, x, noise, self.stats
        )

    def noise(self, draw: int) -> Floats:
        return self.step_noise[draw]

    def taken(self, items: Ints) -> "Rows":
        return replace(
            self,
            condition=take(self.condition, items, 1),
            step_noise=take(self.step_noise, items, 1),
        )

    def thinned(self, table: StepTable, kept: Ints) -> StepTable:
        return self.respaced([int(timestep) for timestep in table.timesteps[kept][::-1]])


def check_iterations(iterations: int, tokens: int) -> None:
    """DisaError for more AR iterations than an image has tokens."""
    if iterations > tokens:
        raise DisaError(
            f"{iterations} iterations are more than the {tokens} tokens of an image: "
            f"give at most {tokens}"
        )


def prediction_counts(tokens: int, iterations: int) -> list[int]:
    """How many tokens each AR iteration predicts.

    After iteration s of S, floor(L * cos(pi/2 * (s+1)/S)) tokens stay masked (as in MaskGIT,
    arXiv 2202.04200), at least one and at least one fewer than before; the last iteration
    predicts all that are left.
    """
    check_iterations(iterations, tokens)
    counts, masked = [], tokens
    for iteration in range(iterations - 1):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * (iteration + 1) / iterations))
        left = max(1, min(masked - 1, wanted))
        counts.append(masked - left)
        masked = left
    return [*counts, masked]
