"""The shapes that an engine is built for, and how other requests are split or padded to fit."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...errors import DamagedFile, InvalidRequest
from ..plan.engine_info import ShapeRange
from ..session import TensorSpec

MAX_TABLE = 4096
"""Largest number of rows in a table of timesteps. A sampler has at most 1,000, but a server joins
the tables of all images in a batch: those of 50, 49, ... 5 steps are 1,265 rows."""
MAX_ROWS = 2048
"""Rows of a denoising step in one call. This many saturate any GPU; more are split."""


@dataclass(frozen=True)
class Range:
    """Smallest, usual and largest size of a dimension."""

    minimum: int
    usual: int
    maximum: int

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.usual <= self.maximum or self.maximum == 0:
            raise InvalidRequest(
                f"{self} is not a range of sizes: use MIN:USUAL:MAX, each at least the one before"
            )

    def __str__(self) -> str:
        return f"{self.minimum}:{self.usual}:{self.maximum}"

    @classmethod
    def parse(cls, text: str) -> "Range":
        """Parse "1:8:64", or "8", which means 1:8:8.

        Raises:
            DisaError: the text is neither.
        """
        try:
            numbers = [int(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers = [min(1, numbers[0]), numbers[0], numbers[0]]
        if len(numbers) != 3 or min(numbers) < 1:
            raise InvalidRequest(
                f"{text!r} is not a batch size: use a number such as 8, or MIN:USUAL:MAX "
                "such as 1:8:64"
            )
        return cls(*numbers)


def dimensions(
    tokens: Mapping[str, Any], defaults: Mapping[str, Any], batch: Range
) -> dict[str, Range]:
    """The range of every dimension of this model's graphs.

    Args:
        tokens: of the manifest: `count`, the tokens of an image, and, if the family has
            further dimensions, `dimensions` with [smallest, usual, largest] for each name,
            or [smallest, largest] where as many are usual as one AR iteration generates.
        defaults: of the manifest: `num_iterations` determines how many tokens are usual in one.
        batch: images at a time.
    """
    count = tokens.get("count")
    if not isinstance(count, int) or count < 1:
        raise DamagedFile("the plan's manifest does not say how many tokens an image has")
    iterations = defaults.get("num_iterations")
    if not isinstance(iterations, int) or not 1 <= iterations <= count:
        iterations = min(64, count)
    # With MAR's cosine schedule the middle iteration predicts about 1.1 times the mean.
    usual = max(1, math.ceil(1.1 * count / iterations))
    rows = min(count * batch.maximum, max(MAX_ROWS, batch.maximum))
    ranges = {
        "batch": batch,
        "guidance": Range(1, 2, 2),
        "rows": Range(1, min(usual * batch.usual, rows), rows),
        "steps": Range(1, 50, MAX_TABLE),
    }
    given = tokens.get("dimensions", {})
    if not isinstance(given, dict):
        raise DamagedFile("the plan's manifest has dimensions that are not ranges with names")
    for name, sizes in given.items():
        listed = isinstance(sizes, list) and len(sizes) in (2, 3)
        if not listed or not all(isinstance(size, int) for size in sizes):
            raise DamagedFile(f"the plan's manifest gives no range of sizes for {name}")
        middle = sizes[1] if len(sizes) == 3 else min(max(usual, sizes[0]), sizes[-1])
        ranges[name] = Range(sizes[0], middle, sizes[-1])
    return ranges


def graph_profile(
    graph: str, inputs: Iterable[TensorSpec], ranges: Mapping[str, Range]
) -> dict[str, ShapeRange]:
    """Shapes of the inputs of a graph.

    Raises:
        DisaError: the range of a dimension is not known.
    """
    profile = {}
    for spec in inputs:
        for dimension in spec.shape:
            if isinstance(dimension, str) and dimension not in ranges:
                raise DamagedFile(
                    f"the input {spec.name} of the graph {graph} has a dimension {dimension}, and "
                    "the plan's manifest does not say how large it can be (tokens: dimensions): "
                    "export the checkpoint again"
                )
        profile[spec.name] = ShapeRange(
            *(
                tuple(d if isinstance(d, int) else getattr(ranges[d], which) for d in spec.shape)
                for which in ("minimum", "usual", "maximum")
            )
        )
    return profile


def dimension_ranges(
    inputs: Iterable[TensorSpec], profile: Mapping[str, ShapeRange]
) -> dict[str, Range]:
    """The range of each named dimension, derived from the shapes of the inputs."""
    ranges: dict[str, Range] = {}
    for spec in inputs:
        shapes = profile[spec.name]
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                sizes = (s[axis] for s in (shapes.minimum, shapes.usual, shapes.maximum))
                ranges[name] = Range(*sizes)
    return ranges


def sizes_of(inputs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The size of each named dimension, for shapes that fit the inputs."""
    return {
        dimension: size
        for spec in inputs
        for dimension, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(dimension, str)
    }


@dataclass(frozen=True)
class Piece:
    """A part of a request along the dimension that is split."""

    start: int
    stop: int
    size: int
    """Size for the engine: at least `stop - start`; the rest is padding."""

    @property
    def count(self) -> int:
        """The number of rows without padding."""
        return self.stop - self.start


def pieces(size: int, allowed: Range, ladder: bool = False) -> list[Piece]:
    """Split `size` into equal parts that fit; with `ladder`, pad each to a size of `rung`."""
    count = max(1, math.ceil(size / allowed.maximum))
    edges = [size * part // count for part in range(count + 1)]
    result = []
    for start, stop in pairwise(edges):
        padded = rung(stop - start) if ladder else stop - start
        padded = min(max(padded, allowed.minimum), allowed.maximum)
        result.append(Piece(start, stop, padded))
    return result


def rung(rows: int) -> int:
    """The smallest of the row counts 1 2 4 8 16 24 ... 64 96 ... 256 384 ... that is large enough.

    CUDA graphs are made for these counts only. Small counts are limited by reading the weights, so
    padding costs nothing there; large ones are padded by a quarter at most.
    """
    if rows <= 8:
        return 1 << max(rows - 1, 0).bit_length()
    step = 8 if rows <= 64 else 32 if rows <= 256 else 128
    return math.ceil(rows / step) * step


def check_sizes(
    graph: str, sizes: Mapping[str, int], ranges: Mapping[str, Range], split: str | None
) -> None:
    """Check the dimensions other than `split` against the profile.

    Raises:
        InvalidRequest: a dimension is outside of its range.
    """
    for name, size in sizes.items():
        allowed = ranges[name]
        if name != split and not allowed.minimum <= size <= allowed.maximum:
            raise InvalidRequest(
                f"the engine of the graph {graph} is built for {allowed.minimum} to "
                f"{allowed.maximum} {name}, and the request has {size}: use --engine onnxruntime"
            )
