"""xAR: autoregression over clusters of tokens, each denoised by the transformer itself
(arXiv 2502.20388)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...engines.plan.traits import GraphTraits, Role
from ..checkpoints.state_dict import load_strict
from ..graphs.graph import Arrays, Graph, Shape
from ..layers.denoising_step import DenoisingStep, EulerMaruyama, Network
from ..layers.flow import (
    ExactTimestepEmbedding,
    LatentDecoder,
    Modulation,
    rearrange_rotary,
    rotary_table,
    run_cached,
)
from ..layers.flow_stacks import Stacks
from ..layers.transformer import Linear, TimestepEmbedding, for_each
from ..vae.decoder import KLDecoder
from .configs.flow import released, unused_at_inference
from .configs.xar import (
    CLUSTERS,
    FAMILY,
    QUADRANTS,
    SIZES,
    XARConfig,
    configure,
    defaults,
    official_config,
    recognise,
)
from .flow_graphs import base_manifest, cache_shapes, decoder_graph, normal

__all__ = [
    "FAMILY",
    "SIZES",
    "XAR",
    "Config",
    "build",
    "configure",
    "graphs",
    "manifest",
    "official_config",
    "recognise",
    "released",
    "unused_at_inference",
]

READS_TEXT = False

MODULATION_BYTES = 256 * 1024**2
"""Most memory for modulations computed at once."""


class XAR(Stacks):
    """The whole model, with the keys of an official checkpoint."""

    def __init__(self, config: XARConfig) -> None:
        super().__init__(config, config.grid**2)
        self.config = config
        self.time_embed = TimestepEmbedding(config.width)
        self.pred = Linear(config.width, config.vae_embed_dim)


class TimestepModulation(nn.Module):
    """The modulations of all blocks for many timesteps at once.

    They depend on class and time only, not on the tokens. Computed before the denoising loop, they
    spare the loop reading their weights, which are a third of the model.
    """

    def __init__(self, model: XAR) -> None:
        super().__init__()
        self.class_emb = model.class_emb
        self.time_embed = ExactTimestepEmbedding(model.time_embed)
        blocks = [*model.encoder_blocks, *model.decoder_blocks]
        self.modulation = Modulation([block.ada_lin[1] for block in blocks])

    def forward(self, timestep: Tensor, class_index: Tensor) -> Tensor:
        """`timestep` [rows], `class_index` [rows] -> [rows, modulations]."""
        result: Tensor = self.modulation(self.class_emb(class_index) + self.time_embed(timestep))
        return result


class Transformer(nn.Module):
    """The layers that are shared by prefill and denoising."""

    def __init__(self, model: XAR) -> None:
        super().__init__()
        config = model.config
        self.z_proj, self.z_proj_ln = model.z_proj, model.z_proj_ln
        self.encoder_blocks, self.encoder_norm = model.encoder_blocks, model.encoder_norm
        self.decoder_embed, self.decoder_blocks = model.decoder_embed, model.decoder_blocks
        for stack in ("encoder", "decoder"):
            table = getattr(model, f"{stack}_pos_embed_learned").detach()[0]
            self.register_buffer(f"{stack}_position", table)
            heads = getattr(config, f"{stack}_num_heads")
            rotary = cluster_rotary(config.grid, config.width // heads)
            self.register_buffer(f"{stack}_rotary", rotary)

    def encode(
        self, tokens: Tensor, positions: Tensor, modulations: tuple[Tensor, ...], cache: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens [tokens, batch, C] to the decoder's input [rows, tokens, width]."""
        x = self.z_proj_ln(
            self.z_proj(tokens.transpose(0, 1)) + self.encoder_position.index_select(0, positions)
        )
        x = for_each(x, cache.shape[1])
        rotary = self.encoder_rotary.index_select(1, positions)
        x, cache = run_cached(self.encoder_blocks, x, modulations, rotary, cache)
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_position.index_select(
            0, positions
        )
        return x, cache

    def split(self, modulation: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Modulations [guidance, batch, all] of the encoder's and of the decoder's blocks."""
        width, depth = self.decoder_embed.in_features, len(self.encoder_blocks)
        parts = modulation.flatten(0, 1).unsqueeze(1).split(6 * width, dim=-1)
        return parts[:depth], parts[depth:]


class Prefill(Transformer):
    """Appends a finished cluster to the cache.

    The tokens of a finished cluster do not attend to the noisy tokens after them, so their keys and
    values are computed once and not in every denoising step of the next cluster.
    """

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        modulation: Tensor,
        encoder_cache: Tensor,
        decoder_cache: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The two caches with the cluster appended.

        Args:
            tokens: the finished cluster, [tokens, batch, C].
            positions: positions of its tokens in generation order, [tokens].
            modulation: for timestep 0, [guidance, batch, modulations].
            encoder_cache, decoder_cache: keys and values of the earlier clusters,
                [2 * depth, guidance, batch, heads, past, d].
        """
        encoder, decoder = self.split(modulation)
        x, encoder_cache = self.encode(tokens, positions, encoder, encoder_cache)
        rotary = self.decoder_rotary[:, positions]
        _, decoder_cache = run_cached(
            self.decoder_blocks, x, decoder, rotary, decoder_cache, cache_only=True
        )
        return encoder_cache, decoder_cache


class StepNetwork(Transformer, Network):
    """The whole transformer on a noisy cluster, for the graph of a denoising step."""

    inputs = ("x", "positions", "modulation", "encoder_cache", "decoder_cache")

    def __init__(self, model: XAR) -> None:
        super().__init__(model)
        self.decoder_norm, self.pred = model.decoder_norm, model.pred

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        modulation: Tensor,
        encoder_cache: Tensor,
        decoder_cache: Tensor,
    ) -> Tensor:
        """The velocity [guidance, 64, batch, C].

        Args:
            x: noisy cluster, [tokens, batch, C].
            positions: positions of its tokens in generation order, [tokens].
            modulation: for the step's time, [guidance, batch, modulations]; guidance is
                (conditional, unconditional), or one entry for no guidance.
            encoder_cache, decoder_cache: keys and values of the earlier clusters,
                [2 * depth, guidance, batch, heads, past, d].
        """
        encoder, decoder = self.split(modulation)
        hidden, _ = self.encode(x, positions, encoder, encoder_cache)
        rotary = self.decoder_rotary.index_select(1, positions)
        hidden, _ = run_cached(self.decoder_blocks, hidden, decoder, rotary, decoder_cache)
        velocity: Tensor = self.pred(self.decoder_norm(hidden))
        return velocity.unflatten(0, modulation.shape[:2]).transpose(1, 2)


def head_step(model: XAR) -> DenoisingStep:
    """One denoising step of a cluster."""
    return DenoisingStep(StepNetwork(model), EulerMaruyama())


def cluster_rotary(grid: int, head_dim: int) -> Tensor:
    """Rotary table of a grid in generation order, [2, grid * grid, head_dim / 2]."""
    side = grid // QUADRANTS
    table = rotary_table(grid, head_dim, grid)
    table = table.unflatten(1, (QUADRANTS, side, QUADRANTS, side))
    return table.transpose(2, 3).flatten(1, 4)


def build(
    state: Mapping[str, Tensor], config: XARConfig, where: Path | str = "the checkpoint"
) -> XAR:
    """The model with the weights of `state`, which must have all tensors of the model."""
    with torch.device("meta"):
        model = XAR(config)
    load_strict(model, rearrange_rotary(state, config.heads), where=where)
    return model.eval().requires_grad_(False)


Config = XARConfig
Model = XAR


def graphs(model: XAR, vae: KLDecoder | None = None) -> list[Graph]:
    """The graphs of a plan, in fp32: timestep, prefill, head and decoder."""
    config = model.config
    return [
        _timestep_graph(TimestepModulation(model), config),
        _prefill_graph(Prefill(model), config),
        _head_graph(head_step(model), config),
        decoder_graph(LatentDecoder(config.grid, QUADRANTS, vae), config.vae_embed_dim),
    ]


def manifest(config: XARConfig) -> dict[str, Any]:
    """The model's part of the manifest, for the runtime."""
    at_once = max(2, MODULATION_BYTES // (4 * config.modulations))
    tokens = {
        "clusters": CLUSTERS,
        "dimensions": {
            "past": [0, 2 * config.cluster_tokens, 3 * config.cluster_tokens],
            "rows": [1, min(100, at_once), at_once],
        },
    }
    return base_manifest(FAMILY, config, tokens, defaults(config))


def _timestep_graph(module: TimestepModulation, config: XARConfig) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        rows = sizes["rows"]
        return {
            "timestep": np.linspace(1000, 0, rows, dtype=np.float32).round(),
            "class_index": config.class_num - np.arange(rows) % 3,
        }

    return Graph(
        name="timestep",
        module=module,
        inputs={"timestep": ("rows",), "class_index": ("rows",)},
        outputs={"modulation": ("rows", config.modulations)},
        example=example,
        sizes={"rows": 5},
        traits=GraphTraits(Role.TIMESTEP, split="rows"),
        checks=({"rows": 1}, {"rows": 16}),
    )


def _prefill_graph(module: Prefill, config: XARConfig) -> Graph:
    inputs: dict[str, Shape] = {
        "tokens": (config.cluster_tokens, "batch", config.vae_embed_dim),
        "positions": (config.cluster_tokens,),
        "modulation": ("guidance", "batch", config.modulations),
        **cache_shapes(config, "past"),
    }

    def example(sizes: Mapping[str, int]) -> Arrays:
        return _cluster_example(inputs, sizes)

    return Graph(
        name="prefill",
        module=module,
        inputs=inputs,
        outputs=cache_shapes(config, "past_and_present", "next_"),
        example=example,
        sizes={"guidance": 2, "batch": 3, "past": 5},
        traits=GraphTraits(Role.ITERATION, split="batch"),
        checks=_cache_checks(config),
    )


def _head_graph(step: DenoisingStep, config: XARConfig) -> Graph:
    inputs = step.shapes(
        {
            "x": (config.cluster_tokens, "batch", config.vae_embed_dim),
            "positions": (config.cluster_tokens,),
            "modulation": ("guidance", "batch", config.modulations),
            **cache_shapes(config, "past"),
        },
        "batch",
    )

    def example(sizes: Mapping[str, int]) -> Arrays:
        arrays = _cluster_example(inputs, sizes)
        steps, batch = sizes["steps"], sizes["batch"]
        arrays["step"] = np.arange(batch) % steps
        arrays["coefficients"] = np.tile(np.array([0.98, -0.03, 0.1], np.float32), (steps, 1))
        arrays["guidance_scale"] = np.linspace(1, 3, batch, dtype=np.float32)
        return arrays

    return Graph(
        name="head",
        module=step,
        inputs=inputs,
        outputs={"next_x": inputs["x"]},
        example=example,
        sizes={"guidance": 2, "batch": 3, "past": 5, "steps": 9},
        traits=GraphTraits(Role.STEP, split="batch"),
        checks=tuple({**sizes, "steps": 4} for sizes in _cache_checks(config)),
    )


def _cache_checks(config: XARConfig) -> tuple[dict[str, int], ...]:
    """The sizes at which a graph with caches is checked."""
    return (
        {"guidance": 1, "batch": 1, "past": 0},
        {"guidance": 2, "batch": 2, "past": config.cluster_tokens},
        {"guidance": 2, "batch": 1, "past": 3 * config.cluster_tokens},
    )


def _cluster_example(inputs: Mapping[str, Shape], sizes: Mapping[str, int]) -> Arrays:
    rng = np.random.default_rng(0)
    arrays: Arrays = {name: normal(rng, shape, sizes) for name, shape in inputs.items()}
    (tokens,) = cast(tuple[int], inputs["positions"])
    arrays["positions"] = sizes["past"] // tokens * tokens + np.arange(tokens)
    return arrays
