"""Harmon: encodes prompts into a cache, then generates masked tokens on a grid of any shape."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....engines.array_types import Floats
from ....engines.plan.plan import Plan
from ....engines.session import Array
from ....errors import DisaError, InvalidRequest
from ....recent import Recent
from ...generation import Request
from ...stats import Stats
from ..cohort import group_by
from ..conditions.prompt import TOKENIZER_MEMBER, EncodedPrompt, PromptBatch, Tokenizer
from ..conditions.prompt_cache import PromptCache
from ..counts import read_count
from ..family import Decoded, Sessions
from ..options import about
from ..signatures import Signature
from .family import MaskedFamily, MaskedSample
from .options import MaskedOptions
from .partition import generation_order

MAX_SIDE = 4096
"""Largest side of an image in pixels."""
MAX_GRIDS = 16
"""Number of grids whose position embeddings are cached."""

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class HarmonOptions(MaskedOptions):
    """Sampling options of Harmon."""

    size: str = field(
        default="512",
        metadata=about(str, "Size in pixels: 512, or WIDTHxHEIGHT such as 640x384."),
    )

    def image_tokens(self, tokens: Mapping[str, Any]) -> int:
        height, width = parse_size(self.size, tokens["stride"])
        return height * width


@dataclass(eq=False)
class HarmonSample(MaskedSample):
    """An image in progress.

    Attributes:
        grid: height and width in tokens.
        prompts: the cache that has its prompts.
        prompt_rows: rows of its prompts in that cache, [guidance].
    """

    grid: Grid = (0, 0)
    prompts: PromptCache = field(default_factory=PromptCache)
    prompt_rows: tuple[int, ...] = ()


class HarmonFamily(MaskedFamily[HarmonSample]):
    """A loaded Harmon model. See `generation.Family`."""

    Options = HarmonOptions
    classes: int | None = None

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        stride = read_count(plan, "tokens", "stride")
        self.vocabulary = read_count(plan, "model", "llm", "vocab_size")
        self._tokenizer: Tokenizer | None = None
        self.native = read_count(plan, "tokens", "native_grid")
        self.width = read_count(plan, "model", "llm", "hidden_size")
        self.sequence = read_count(plan, "tokens", "count")
        self.channels = read_count(plan, "tokens", "channels")
        super().__init__(plan, sessions)
        self.token_sizes["stride"] = stride
        self._prompt, self._grid = self.session("prompt"), self.session("grid")
        self._grids: Recent[dict[str, Array]] = Recent(MAX_GRIDS)

    @staticmethod
    def signature(plan: Plan) -> Signature:
        """See `BaseFamily`."""
        channels = read_count(plan, "tokens", "channels")
        native = read_count(plan, "tokens", "native_grid")
        return {
            "grid": {"rows": ("height", native), "columns": ("width", native)},
            "backbone": {"tokens": ("visible", "batch", channels)},
            **MaskedFamily.head_signature(plan, channels),
            "decoder": {"tokens": ("length", "batch", channels)},
        }

    @property
    def tokenizer(self) -> Tokenizer:
        """The plan's tokenizer, read when a prompt is first needed."""
        if self._tokenizer is None:
            if TOKENIZER_MEMBER not in self._plan.manifest.members:
                raise DisaError(
                    f"{self._plan.path} has no tokenizer, so it cannot read prompts: export it "
                    "again with --tokenizer DIR"
                )
            self._tokenizer = Tokenizer(self._plan.read(TOKENIZER_MEMBER), self.vocabulary)
        return self._tokenizer

    def conditions(self, wanted: Sequence[Any]) -> list[str]:
        """See `generation.Family`."""
        for prompt in wanted:
            if not isinstance(prompt, str) or not prompt.strip():
                raise InvalidRequest("a prompt is empty: describe an image")
            self.tokenizer.encode(prompt)
        return list(wanted)

    def start(self, requests: Sequence[Request], stats: Stats) -> list[HarmonSample]:
        """See `generation.Family`. A condition may also be an `EncodedPrompt`."""
        samples = []
        for request in requests:
            options = request.options
            grid = parse_size(options.size, self.token_sizes["stride"])
            samples.append(
                HarmonSample(
                    request,
                    options.num_iterations,
                    counts=options.partition(grid[0] * grid[1]),
                    order=generation_order(request.noise, grid, options.order),
                    grid=grid,
                )
            )
        for members in group_by(samples, lambda sample: sample.request.options.guided):
            self._read_prompts(members, stats)
        self._seat(samples)
        return samples

    def _read_prompts(self, samples: Sequence[HarmonSample], stats: Stats) -> None:
        """Run the prompts of samples, all of which are guided or none."""
        prompts = [self._encoded(sample.request.condition) for sample in samples]
        batch = PromptBatch.of_prompts(prompts, samples[0].request.options.guided)
        batch.check(self.vocabulary)
        with stats.timed("prompt"):
            arrays = self._prompt.run({"input_ids": batch.input_ids})
        cache = PromptCache(arrays, batch.length)
        for sample, column in zip(samples, batch.index.T, strict=True):
            sample.prompts, sample.prompt_rows = cache, tuple(column.tolist())

    def _encoded(self, condition: Any) -> EncodedPrompt:
        if isinstance(condition, EncodedPrompt):
            return condition
        return EncodedPrompt.of(self.tokenizer, condition)

    def _shape(self, sample: HarmonSample) -> Hashable:
        return sample.grid

    def _constants(self, samples: Sequence[HarmonSample]) -> dict[str, Any]:
        if len({id(sample.prompts) for sample in samples}) > 1:
            cache, rows = PromptCache.joined(
                [(sample.prompts, sample.prompt_rows) for sample in samples]
            )
            for sample, mine in zip(samples, rows, strict=True):
                sample.prompts, sample.prompt_rows = cache, mine
        cache = samples[0].prompts
        index = np.array([sample.prompt_rows for sample in samples], np.int64).T
        return {
            "prompt_index": np.ascontiguousarray(index),
            "prompt_length": cache.length,
            **cache.arrays,
            **self.grid_tables(samples[0].grid),
        }

    def grid_tables(self, grid: Grid) -> dict[str, Array]:
        """Position embeddings of a grid, interpolated once and cached."""
        height, width = grid
        return self._grids.get(
            grid,
            lambda: self._grid.run(
                {
                    "rows": interpolation(self.native, height),
                    "columns": interpolation(self.native, width),
                }
            ),
        )

    def _decode(self, samples: Sequence[HarmonSample]) -> Decoded:
        found: Decoded = []
        for members in group_by(samples, lambda sample: sample.grid):
            tokens, positions = self._all_tokens(members)
            place = positions.argsort(axis=0).reshape(*members[0].grid, len(members))
            found.append((members, self._decoder.run({"tokens": tokens, "place": place})))
        return found


def interpolation(native: int, size: int) -> Floats:
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
        InvalidRequest: it is not a size, not a multiple of `stride`, or larger than `MAX_SIDE`.
    """
    match = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", str(text).strip().lower())
    if not match:
        raise InvalidRequest(
            f"a size must be pixels such as 512 or 640x384 (width x height), not {str(text)[:80]!r}"
        )
    width, height = int(match[1]), int(match[2] or match[1])
    for side in (width, height):
        if side % stride or not stride <= side <= MAX_SIDE:
            raise InvalidRequest(
                f"an image side must be a multiple of {stride} from {stride} to {MAX_SIDE} pixels, "
                f"not {side}"
            )
    return height // stride, width // stride
