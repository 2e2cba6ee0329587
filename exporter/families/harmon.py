"""Harmon: a language model between MAR's encoder and decoder, text to image (arXiv 2503.21979)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...engines.plan.traits import GraphTraits, Role
from ..checkpoints.state_dict import load_strict
from ..graphs.graph import Arrays, Graph, Shape
from ..layers import qwen2
from ..layers.diffusion_head import head_graphs, timestep_graph
from ..vae.decoder import KLDecoder
from .configs.harmon import (
    FAMILY,
    SIZES,
    HarmonConfig,
    configure,
    manifest,
    official_config,
    recognise,
)
from .configs.mar import MARConfig
from .harmon_model import Backbone, Decoder, Grid, Harmon, Prompt

__all__ = [
    "FAMILY",
    "SIZES",
    "Config",
    "Harmon",
    "build",
    "configure",
    "graphs",
    "manifest",
    "official_config",
    "recognise",
]

READS_TEXT = True


def build(state: Mapping[str, Tensor], config: HarmonConfig, where: Path | str) -> Harmon:
    """The model with the weights of `state`, which must have all tensors of the model."""
    with torch.device("meta"):
        model = Harmon(config)
    load_strict(model, state, where=where)
    return model.eval()


def unused_at_inference(key: str) -> bool:
    """Whether inference does not need a tensor: the output layer for text, and the VAE."""
    return key == "llm.lm_head.weight" or "vae." in key


Config = HarmonConfig
Model = Harmon


def released(state: Mapping[str, Tensor], config: HarmonConfig) -> object:
    """The state dict, which is what the official release contains."""
    del config
    return dict(state)


def graphs(model: Harmon, vae: KLDecoder | None = None) -> list[Graph]:
    """The graphs of a plan: prompt, grid, backbone, timestep, head, decoder; all in fp32."""
    config, head = model.config, model.mar.head
    return [
        _prompt_graph(Prompt(model.language_model), config.llm),
        _grid_graph(Grid(model.mar), config.mar),
        backbone_graph(Backbone(model), config),
        timestep_graph(head.time_embed, config.mar.diffloss_w),
        *head_graphs(head),
        _decoder_graph(Decoder(config, vae), config.mar),
    ]


def cached_graphs(model: Harmon) -> tuple[list[Graph], dict[str, list[int]]]:
    """The graphs of a cached backbone, and the sizes of their additional dimensions."""
    # These modules import this one.
    from .cached.harmon import cached_graphs as build_graphs
    from .cached.shapes import cache_dimensions

    length = manifest(model.config)["tokens"]["count"]
    return build_graphs(model, Backbone(model)), cache_dimensions(length, model.config.mar)


def _cache_shape(config: qwen2.Config) -> Shape:
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    return (layers, "prompts", heads, "prompt_length", config.head_dim)


def _prompt_graph(module: Prompt, config: qwen2.Config) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        shape = (sizes["prompts"], sizes["prompt_length"])
        return {"input_ids": np.random.default_rng(0).integers(0, config.vocab_size, shape)}

    return Graph(
        name="prompt",
        module=module,
        inputs={"input_ids": ("prompts", "prompt_length")},
        outputs={"prompt_key": _cache_shape(config), "prompt_value": _cache_shape(config)},
        example=example,
        sizes={"prompts": 4, "prompt_length": 6},
        traits=GraphTraits(Role.ONCE, prepack=False),
        checks=({"prompts": 1, "prompt_length": 1}, {"prompts": 2, "prompt_length": 40}),
    )


def _grid_graph(module: Grid, config: MARConfig) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        return {
            name: rng.uniform(0, 2 / config.grid, (sizes[size], config.grid)).astype(np.float32)
            for name, size in (("rows", "height"), ("columns", "width"))
        }

    return Graph(
        name="grid",
        module=module,
        inputs={"rows": ("height", config.grid), "columns": ("width", config.grid)},
        outputs={
            "encoder_position": ("length", config.encoder_embed_dim),
            "decoder_position": ("length", config.decoder_embed_dim),
            "condition_position": ("length", config.decoder_embed_dim),
        },
        example=example,
        sizes={"height": 9, "width": 7},
        traits=GraphTraits(Role.ONCE, quantizable=False, always_fp32=True),
        checks=({"height": 1, "width": 1}, {"height": 32, "width": 24}),
    )


def backbone_graph(module: Backbone, config: HarmonConfig) -> Graph:
    """The graph of the backbone."""
    half, cache = config.mar, _cache_shape(config.llm)
    dimensions = (
        "guidance",
        "batch",
        "visible",
        "predicted",
        "length",
        "prompts",
        "prompt_length",
    )

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        batch, visible, length = sizes["batch"], sizes["visible"], sizes["length"]
        positions = rng.permuted(np.tile(np.arange(length)[:, None], batch), axis=0)
        concrete = tuple(sizes[dim] if isinstance(dim, str) else dim for dim in cache)
        tables = {"encoder": half.encoder_embed_dim, "decoder": half.decoder_embed_dim}
        tables["condition"] = half.decoder_embed_dim
        prompts, longest = sizes["prompts"], sizes["prompt_length"]
        return {
            "tokens": rng.standard_normal((visible, batch, half.channels), np.float32),
            "positions": positions,
            "predicted": positions[visible : visible + sizes["predicted"]],
            "prompt_index": rng.integers(0, prompts, (sizes["guidance"], batch)),
            "prompt_length": rng.integers(1, longest + 1, prompts),
            "prompt_key": rng.standard_normal(concrete, np.float32),
            "prompt_value": rng.standard_normal(concrete, np.float32),
            **{
                f"{name}_position": 0.02 * rng.standard_normal((length, width), np.float32)
                for name, width in tables.items()
            },
        }

    return Graph(
        name="backbone",
        module=module,
        inputs={
            "tokens": ("visible", "batch", half.channels),
            "positions": ("length", "batch"),
            "predicted": ("predicted", "batch"),
            "prompt_index": ("guidance", "batch"),
            "prompt_length": ("prompts",),
            "prompt_key": cache,
            "prompt_value": cache,
            "encoder_position": ("length", half.encoder_embed_dim),
            "decoder_position": ("length", half.decoder_embed_dim),
            "condition_position": ("length", half.decoder_embed_dim),
        },
        outputs={"condition": ("guidance", "rows", half.diffloss_w)},
        example=example,
        sizes=dict(zip(dimensions, (2, 3, 7, 5, 31, 4, 6), strict=True)),
        traits=GraphTraits(Role.ITERATION, split="batch"),
        checks=tuple(
            dict(zip(dimensions, sizes, strict=True))
            for sizes in ((1, 1, 0, 1, 4, 1, 1), (2, 1, 3, 1, 4, 2, 9), (2, 4, 80, 40, 150, 3, 12))
        ),
    )


def _decoder_graph(module: Decoder, config: MARConfig) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        height, width, batch = sizes["height"], sizes["width"], sizes["batch"]
        length = height * width
        place = rng.permuted(np.tile(np.arange(length)[:, None], batch), axis=0)
        return {
            "tokens": 0.25 * rng.standard_normal((length, batch, config.channels), np.float32),
            "place": place.reshape(height, width, batch),
        }

    outputs: dict[str, Shape] = {
        "latents": ("batch", config.vae_embed_dim, "latent_height", "latent_width")
    }
    if module.to_pixels is not None:
        outputs["image"] = ("batch", module.pixel_channels, "image_height", "image_width")
    return Graph(
        name="decoder",
        module=module,
        inputs={
            "tokens": ("length", "batch", config.channels),
            "place": ("height", "width", "batch"),
        },
        outputs=outputs,
        example=example,
        sizes={"batch": 3, "height": 7, "width": 5},
        traits=GraphTraits(Role.DECODE, quantizable=False, split="batch"),
        checks=({"batch": 1, "height": 2, "width": 9}, {"batch": 2, "height": 16, "width": 16}),
    )
