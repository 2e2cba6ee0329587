"""MAR's token loop: a random order, more tokens each AR iteration, all of them at once."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from ..errors import DisaError
from .head import Head, Iteration
from .noise import NoiseSource
from .settings import Settings
from .stats import Stats

Watcher = Callable[[Iteration], None]


class MARLoop:
    """Draws the tokens of a batch of images.

    Args:
        sessions: the plan's graphs by name.
        tokens: tokens of an image, L.
        channels: channels of a token, C.
        classes: number of classes; this index stands for no class.
    """

    def __init__(
        self, sessions: Mapping[str, Session], tokens: int, channels: int, classes: int
    ) -> None:
        self._backbone = sessions["backbone"]
        self._head = Head(sessions)
        self.tokens, self.channels, self.classes = tokens, channels, classes

    def generate(
        self,
        labels: npt.NDArray[np.int64],
        settings: Settings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        """Draw one image for each label.

        Args:
            labels: class of each image, [batch]; `classes` for no class.
            watch: called after each AR iteration.

        Returns:
            Tokens in generation order [L, batch, C] and their grid positions [L, batch].
        """
        batch = len(labels)
        counts = prediction_counts(self.tokens, settings.iterations)
        positions = noise.order(self.tokens)
        tokens = self._backbone.empty((self.tokens, batch, self.channels), np.float32)
        class_index = labels[None]
        if settings.guided:
            class_index = np.stack([labels, np.full_like(labels, self.classes)])
        known = 0
        for index, count in enumerate(counts):
            table = settings.table(index)
            with stats.timed("noise"):
                draws = noise.gaussian(index, 1 + len(table), (count, batch, self.channels))
            predicted = positions[known : known + count]
            with stats.timed("backbone"):
                condition = self._backbone.run(
                    {
                        "tokens": tokens[:known],
                        "positions": positions,
                        "predicted": predicted,
                        "class_index": class_index,
                    }
                )["condition"]
            # The official rule leaves one token masked in name even after the last iteration.
            scale = settings.guidance(min(known + count, self.tokens - 1), self.tokens)
            with stats.timed("head"):
                rows = draws.reshape(1 + len(table), count * batch, self.channels)
                sampled = self._head.sample(table, condition, scale, rows, stats)
            tokens[known : known + count] = sampled.reshape(count, batch, self.channels)
            known += count
            if watch:
                watch(Iteration(index, table, scale, predicted, condition, sampled))
        return tokens, positions


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
