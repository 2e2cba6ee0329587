"""Shapes of the caches."""

from collections.abc import Mapping

from ...graphs.graph import Shape
from ..configs.mar import MARConfig


def cache_shape(tokens: int | str, config: MARConfig, half: str) -> Shape:
    """Keys and values of one half of MAR, "encoder" or "decoder", for some tokens."""
    width, depth, heads = (
        getattr(config, f"{half}_{name}") for name in ("embed_dim", "depth", "num_heads")
    )
    return (tokens, depth, 2, "batch", heads, width // heads)


def concrete(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape with the sizes of its dynamic dimensions put in."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in shape)


def cache_dimensions(length: int, config: MARConfig) -> dict[str, list[int]]:
    """The smallest, usual and largest size of the dimensions that only cached graphs have.

    Args:
        length: tokens of an image.
        config: of the masked transformer.
    """
    skip = config.buffer_size
    return {
        "encoded": [skip, skip + length // 2, skip + length],
        "decoded": [skip + 1, skip + length, skip + length],
        "new": [0, max(1, length // 32), length],
    }
