"""MAR's token loop: class labels to tokens."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from .masked import MaskedLoop, Watcher
from .noise import NoiseSource
from .settings import Settings
from .stats import Stats

__all__ = ["MARLoop", "Watcher"]


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
        self._loop = MaskedLoop(sessions, channels)
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
        class_index = labels[None]
        if settings.guided:
            class_index = np.stack([labels, np.full_like(labels, self.classes)])
        constants = {"class_index": class_index}
        return self._loop.run(constants, self.tokens, len(labels), settings, noise, stats, watch)
