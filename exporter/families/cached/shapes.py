"""Shapes of the caches."""

from collections.abc import Mapping

from ...graphs.graph import Shape
from ..configs.mar import MARConfig


def cache_shapes(
    part: str, layers: int, heads: int, tokens: int | str, head_dim: int
) -> dict[str, Shape]:
    """Keys and values of the layers of one part of a model, for some tokens."""
    return {
        f"{part}_{kind}_{layer}": ("batch", heads, tokens, head_dim)
        for layer in range(layers)
        for kind in ("key", "value")
    }


def half_shapes(half: str, config: MARConfig, tokens: int | str) -> dict[str, Shape]:
    """`cache_shapes` of one half of MAR, "encoder" or "decoder"."""
    width, depth, heads = (
        getattr(config, f"{half}_{name}") for name in ("embed_dim", "depth", "num_heads")
    )
    return cache_shapes(half, depth, heads, tokens, width // heads)


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
        "places": [skip + 1, skip + length, skip + length],
        "new": [0, max(1, length // 32), length],
    }
