"""What the graphs of FlowAR and xAR have in common."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from .flow_config import GEOMETRY, StackConfig
from .flow_layers import GRID, LatentDecoder
from .graph import Arrays, Graph, Shape

FloatArray = npt.NDArray[np.float32]


def decoder_graph(module: LatentDecoder, channels: int) -> Graph:
    """The graph from finished tokens to latents and image."""

    def example(sizes: Mapping[str, int]) -> Arrays:
        shape = (GRID * GRID, sizes["batch"], channels)
        return {"tokens": 0.25 * np.random.default_rng(0).standard_normal(shape, np.float32)}

    outputs: dict[str, Shape] = {"latents": ("batch", channels, GRID, GRID)}
    if module.vae is not None:
        side = GRID * module.vae.config.stride
        outputs["image"] = ("batch", module.vae.config.out_channels, side, side)
    return Graph(
        name="decoder",
        module=module,
        inputs={"tokens": (GRID * GRID, "batch", channels)},
        outputs=outputs,
        example=example,
        sizes={"batch": 3},
        checks=({"batch": 1}, {"batch": 2}),
    )


def base_manifest(
    family: str, config: StackConfig, tokens: Mapping[str, Any], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """A manifest's part on the model, its tokens, the image and the default options."""
    return {
        "family": family,
        "model": asdict(config),
        "tokens": {
            "count": GRID * GRID,
            "channels": config.vae_embed_dim,
            "latent_shape": [config.vae_embed_dim, GRID, GRID],
            **tokens,
        },
        "image": {"height": GEOMETRY["img_size"], "width": GEOMETRY["img_size"]},
        "defaults": dict(defaults),
    }


def cache_shapes(config: StackConfig, past: str, prefix: str = "") -> dict[str, Shape]:
    """Shapes of the keys and values that each stack of blocks keeps, under PREFIXstack_cache."""
    shapes: dict[str, Shape] = {}
    for stack in ("encoder", "decoder"):
        heads, depth = getattr(config, f"{stack}_num_heads"), getattr(config, f"{stack}_depth")
        rest = (heads, past, config.width // heads)
        shapes[f"{prefix}{stack}_cache"] = (2 * depth, "guidance", "batch", *rest)
    return shapes


def normal(rng: np.random.Generator, shape: Shape, sizes: Mapping[str, int]) -> FloatArray:
    """Standard normal numbers in a symbolic shape."""
    lengths = [sizes[dim] if isinstance(dim, str) else dim for dim in shape]
    return rng.standard_normal(lengths, np.float32)


def classes(rng: np.random.Generator, sizes: Mapping[str, int], count: int) -> npt.NDArray[Any]:
    """Classes [guidance, batch], none in the unconditional half."""
    index = rng.integers(0, count, (sizes["guidance"], sizes["batch"]))
    index[1:] = count
    return index
