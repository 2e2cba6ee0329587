"""Harmon's token loop: prompts into a cache, then masked generation on a grid of any shape."""

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from ..errors import DisaError
from .masked import MaskedLoop, Watcher
from .noise import NoiseSource
from .prompt import PromptBatch
from .settings import Settings
from .stats import Stats

MAX_SIDE = 4096
"""Largest side of an image in pixels."""

Ints = npt.NDArray[np.int64]
Grid = tuple[int, int]


class HarmonLoop:
    """Draws the tokens of images for prompts.

    Args:
        sessions: the plan's graphs by name.
        native: tokens along a side of the trained grid.
        channels: channels of a token, C.
    """

    def __init__(self, sessions: Mapping[str, Session], native: int, channels: int) -> None:
        self._prompt, self._grid = sessions["prompt"], sessions["grid"]
        self._decoder = sessions["decoder"]
        self._loop = MaskedLoop(sessions, channels)
        self.native = native
        self._tables: dict[Grid, dict[str, Array]] = {}

    def generate(
        self,
        prompts: PromptBatch,
        grid: Grid,
        settings: Settings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> tuple[Array, Ints]:
        """Draw one image for each column of `prompts.index`.

        Args:
            prompts: two rows of prompts if `settings.guided`, else one.
            grid: height and width in tokens.
            watch: called after each AR iteration.

        Returns:
            Tokens in generation order [L, batch, C] and their grid positions [L, batch].
        """
        guidance, batch = prompts.index.shape
        if guidance != 1 + settings.guided:
            raise DisaError(
                f"guidance {settings.guidance_scale:g} needs {1 + settings.guided} prompts for "
                f"each image, and there are {guidance}"
            )
        with stats.timed("prompt"):
            cache = self._prompt.run({"input_ids": prompts.input_ids})
        constants = {
            "prompt_index": prompts.index,
            "prompt_length": prompts.length,
            **cache,
            **self.tables(grid),
        }
        height, width = grid
        return self._loop.run(constants, height * width, batch, settings, noise, stats, watch)

    def tables(self, grid: Grid) -> dict[str, Array]:
        """Position embeddings of a grid, interpolated once and kept."""
        if grid not in self._tables:
            height, width = grid
            self._tables[grid] = self._grid.run(
                {
                    "rows": interpolation(self.native, height),
                    "columns": interpolation(self.native, width),
                }
            )
        return self._tables[grid]

    def decode(self, tokens: Array, positions: Ints, grid: Grid) -> dict[str, Array]:
        """The decoder's outputs, `latents` and perhaps `image`."""
        place = positions.argsort(axis=0).reshape(*grid, positions.shape[1])
        return self._decoder.run({"tokens": tokens, "place": place})


def interpolation(native: int, size: int) -> npt.NDArray[np.float32]:
    """Linear interpolation from `native` to `size` points as a matrix [size, native].

    Half-pixel centres, no antialiasing, the outermost points repeated: PyTorch's
    `interpolate(mode="bilinear", align_corners=False)` along one axis.
    """
    source = np.maximum((np.arange(size) + 0.5) * native / size - 0.5, 0)
    low = np.floor(source).astype(np.int64)
    high = np.minimum(low + 1, native - 1)
    matrix = np.zeros((size, native), np.float32)
    rows = np.arange(size)
    matrix[rows, low] += 1 - (source - low)
    matrix[rows, high] += source - low
    return matrix


def parse_size(text: str | int, stride: int) -> Grid:
    """The grid (height, width) in tokens of "512" or "WIDTHxHEIGHT" pixels.

    Args:
        stride: pixels along a side of a token.

    Raises:
        DisaError: not a size, not a multiple of `stride`, or beyond `MAX_SIDE`.
    """
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(text).strip().lower())
    if not match:
        raise DisaError(f"a size is pixels such as 512 or 640x384 (width x height), not {text!r}")
    width, height = int(match[1]), int(match[2] or match[1])
    for side in (width, height):
        if side % stride or not stride <= side <= MAX_SIDE:
            raise DisaError(
                f"an image side must be a multiple of {stride} from {stride} to {MAX_SIDE} pixels, "
                f"not {side}"
            )
    return height // stride, width // stride
