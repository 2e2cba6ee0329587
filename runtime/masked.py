"""The loop of masked autoregressive generation, which MAR and Harmon share."""

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from ..errors import DisaError
from .adaptive import sample_adaptively
from .head import Floats, Head, Iteration
from .noise import NoiseSource
from .sampler import StepTable, respaced_table
from .settings import Settings
from .stats import Stats

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
            with stats.timed("head"):
                rows = draws.reshape(1 + len(table), count * batch, self.channels)
                sampled = self._sample(table, condition, scale, rows, settings, stats)
            tokens[known : known + count] = sampled.reshape(count, batch, self.channels)
            known += count
            if watch:
                again = partial(self._again, condition, scale)
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

    def _sample(
        self,
        table: StepTable,
        condition: Array,
        scale: float,
        noise: Floats,
        settings: Settings,
        stats: Stats,
    ) -> Array:
        if not settings.tolerance:
            return self._head.sample(table, condition, scale, noise, stats)
        respaced = partial(respaced_table, settings.sampler, temperature=settings.temperature)
        return sample_adaptively(
            self._head, table, respaced, settings.tolerance, condition, scale, noise, stats
        )

    def _again(self, condition: Array, scale: float, table: StepTable, noise: Floats) -> Array:
        return self._head.sample(table, condition, scale, noise, Stats())


def prediction_counts(tokens: int, iterations: int) -> list[int]:
    """How many tokens each AR iteration predicts.

    After iteration s of S, floor(L * cos(pi/2 * (s+1)/S)) tokens stay masked (as in MaskGIT,
    arXiv 2202.04200), at least one and at least one fewer than before; the last iteration
    predicts all that are left.
    """
    if iterations > tokens:
        raise DisaError(
            f"{iterations} iterations are more than the {tokens} tokens of an image: "
            f"give at most {tokens}"
        )
    counts, masked = [], tokens
    for iteration in range(iterations - 1):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * (iteration + 1) / iterations))
        left = max(1, min(masked - 1, wanted))
        counts.append(masked - left)
        masked = left
    return [*counts, masked]
