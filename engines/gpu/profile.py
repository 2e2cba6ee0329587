"""The shapes an engine is built for, and how larger or odd requests are fitted into them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ...errors import DisaError
from ..manifest import ShapeRange
from ..session import TensorSpec

MAX_TABLE = 1000
"""Rows of a table of timesteps: no sampler visits more than the steps of training."""
MAX_ROWS = 2048
"""Rows of a denoising step in one call. So many fill any GPU, so more come in several calls."""
SPLIT = ("batch", "rows")
"""Dimensions along which a request that is too large is cut, the first that an input has."""


@dataclass(frozen=True)
class Range:
    """Smallest, usual and largest size of a dimension."""

    minimum: int
    usual: int
    maximum: int

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.usual <= self.maximum or self.maximum == 0:
            raise DisaError(
                f"{self} is no range of sizes: give MIN:USUAL:MAX, each at least the one before"
            )

    def __str__(self) -> str:
        return f"{self.minimum}:{self.usual}:{self.maximum}"

    @classmethod
    def parse(cls, text: str) -> "Range":
        """From "1:8:64", or from "8", which means 1:8:8. DisaError if it is neither."""
        try:
            numbers = [int(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) == 1:
            numbers = [min(1, numbers[0]), numbers[0], numbers[0]]
        if len(numbers) != 3 or min(numbers) < 1:
            raise DisaError(
                f"{text!r} is no batch size: give a number such as 8, or MIN:USUAL:MAX "
                "such as 1:8:64"
            )
        return cls(*numbers)


def dimensions(
    tokens: Mapping[str, Any], defaults: Mapping[str, Any], batch: Range
) -> dict[str, Range]:
    """The range of every dimension that this model's graphs can have.

    Args:
        tokens: of the manifest: `count`, the tokens of an image, and, if the family has
            dimensions of its own, `dimensions` with [smallest, usual, largest] for each name.
        defaults: of the manifest: `iterations` tells how many tokens are usual in one.
        batch: images at a time.
    """
    count = tokens.get("count")
    if not isinstance(count, int) or count < 1:
        raise DisaError("the plan's manifest does not say how many tokens an image has")
    iterations = defaults.get("iterations")
    if not isinstance(iterations, int) or not 1 <= iterations <= count:
        iterations = min(64, count)
    # With the cosine plan of MAR the middle iteration predicts about 1.1 times the mean.
    usual = max(1, math.ceil(1.1 * count / iterations))
    rows = min(count * batch.maximum, max(MAX_ROWS, batch.maximum))
    ranges = {
        "batch": batch,
        "guidance": Range(1, 2, 2),
        "visible": Range(0, count // 2, count),
        "predicted": Range(1, usual, count),
        "rows": Range(1, min(usual * batch.usual, rows), rows),
        "steps": Range(1, 50, MAX_TABLE),
    }
    given = tokens.get("dimensions", {})
    if not isinstance(given, dict):
        raise DisaError("the plan's manifest has dimensions that are no ranges by name")
    for name, sizes in given.items():
        triple = isinstance(sizes, list) and len(sizes) == 3
        if not triple or not all(isinstance(size, int) for size in sizes):
            raise DisaError(f"the plan's manifest gives no range of three sizes for {name}")
        ranges[name] = Range(*sizes)
    return ranges


def graph_profile(
    graph: str, inputs: Iterable[TensorSpec], ranges: Mapping[str, Range]
) -> dict[str, ShapeRange]:
    """Shapes of the inputs of a graph; DisaError for a dimension of unknown range."""
    profile = {}
    for spec in inputs:
        for dimension in spec.shape:
            if isinstance(dimension, str) and dimension not in ranges:
                raise DisaError(
                    f"the input {spec.name} of the graph {graph} has a dimension {dimension}, and "
                    "the plan's manifest does not say how large it can be (tokens: dimensions)"
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
    """Back from the shapes of inputs to the range of each named dimension."""
    ranges: dict[str, Range] = {}
    for spec in inputs:
        shapes = profile[spec.name]
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                sizes = (s[axis] for s in (shapes.minimum, shapes.usual, shapes.maximum))
                ranges[name] = Range(*sizes)
    return ranges


def sizes_of(inputs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Size of each named dimension, for shapes that fit the inputs."""
    return {
        dimension: size
        for spec in inputs
        for dimension, size in zip(spec.shape, shapes[spec.name], strict=True)
        if isinstance(dimension, str)
    }


@dataclass(frozen=True)
class Piece:
    """A part of a request along the dimension that is cut."""

    start: int
    stop: int
    size: int
    """What the engine is run with: at least `stop - start`, the rest is padding."""

    @property
    def count(self) -> int:
        """Rows that are asked for."""
        return self.stop - self.start


def pieces(size: int, allowed: Range, ladder: bool = False) -> list[Piece]:
    """Cut `size` into equal parts that fit; with `ladder`, pad each to a rung of it."""
    count = max(1, math.ceil(size / allowed.maximum))
    edges = [size * part // count for part in range(count + 1)]
    result = []
    for start, stop in pairwise(edges):
        padded = rung(stop - start) if ladder else stop - start
        padded = min(max(padded, allowed.minimum), allowed.maximum)
        result.append(Piece(start, stop, padded))
    return result


def rung(rows: int) -> int:
    """The smallest row count on the ladder 1 2 4 8 16 24 ... 64 96 ... 256 384 ... with room.

    CUDA graphs are made for these only. Small counts are bound by reading the weights, so
    padding costs nothing there; large ones are padded by a quarter at most.
    """
    if rows <= 8:
        return 1 << max(rows - 1, 0).bit_length()
    step = 8 if rows <= 64 else 32 if rows <= 256 else 128
    return math.ceil(rows / step) * step


def check_sizes(graph: str, sizes: Mapping[str, int], ranges: Mapping[str, Range]) -> None:
    """DisaError for a dimension that cannot be cut and is outside of the profile."""
    cut = {name for name in SPLIT if name in ranges}
    for name, size in sizes.items():
        allowed = ranges[name]
        if name not in cut and not allowed.minimum <= size <= allowed.maximum:
            raise DisaError(
                f"the engine of the graph {graph} is built for {allowed.minimum} to "
                f"{allowed.maximum} {name}, and {size} are asked for: use --engine onnxruntime"
            )
