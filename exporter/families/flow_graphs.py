"""Graphs shared by FlowAR and xAR."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Floats
from ...engines.plan.traits import GraphTraits, Role
from ..graphs.graph import Arrays, Graph, Shape
from ..layers.flow import LatentDecoder
from .configs.flow import StackConfig


def decoder_graph(module: LatentDecoder, channels: int) -> Graph:
    """The graph from finished tokens to latents and image."""
    grid = module.grid

    def example(sizes: Mapping[str, int]) -> Arrays:
        shape = (grid * grid, sizes["batch"], channels)
        return {"tokens": 0.25 * np.random.default_rng(0).standard_normal(shape, np.float32)}

    outputs: dict[str, Shape] = {"latents": ("batch", channels, grid, grid)}
    if module.vae is not None:
        side = grid * module.vae.config.stride
        outputs["image"] = ("batch", module.vae.config.out_channels, side, side)
    return Graph(
        name="decoder",
        module=module,
        inputs={"tokens": (grid * grid, "batch", channels)},
        outputs=outputs,
        example=example,
        sizes={"batch": 3},
        traits=GraphTraits(Role.DECODE, quantizable=False, split="batch"),
        checks=({"batch": 1}, {"batch": 2}),
    )


def base_manifest(
    family: str, config: StackConfig, tokens: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest's entries for the model, its tokens, the image and the default options."""
    return {
        "family": family,
        "model": asdict(config),
        "tokens": {
            "count": config.grid**2,
            "channels": config.vae_embed_dim,
            "latent_shape": [config.vae_embed_dim, config.grid, config.grid],
            **tokens,
        },
        "image": {"height": config.img_size, "width": config.img_size},
        "defaults": dict(defaults),
    }


def cache_shapes(config: StackConfig, past: str, prefix: str = "") -> dict[str, Shape]:
    """Shapes of the cached keys and values of each stack of blocks, named PREFIXstack_cache."""
    shapes: dict[str, Shape] = {}
    for stack in ("encoder", "decoder"):
        heads, depth = getattr(config, f"{stack}_num_heads"), getattr(config, f"{stack}_depth")
        rest = (heads, past, config.width // heads)
        shapes[f"{prefix}{stack}_cache"] = (2 * depth, "guidance", "batch", *rest)
    return shapes


def normal(rng: np.random.Generator, shape: Shape, sizes: Mapping[str, int]) -> Floats:
    """Standard normal numbers in a symbolic shape."""
    lengths = [sizes[dim] if isinstance(dim, str) else dim for dim in shape]
    return rng.standard_normal(lengths, np.float32)


def classes(rng: np.random.Generator, sizes: Mapping[str, int], count: int) -> npt.NDArray[Any]:
    """Classes [guidance, batch], none in the unconditional half."""
    index = rng.integers(0, count, (sizes["guidance"], sizes["batch"]))
    index[1:] = count
    return index
