"""xAR: autoregression over clusters of tokens, each denoised by the transformer itself
(arXiv 2502.20388)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .flow_config import is_needless
from .flow_graphs import base_manifest, cache_shapes, decoder_graph, normal
from .flow_layers import (
    GRID,
    ExactTimestepEmbedding,
    LatentDecoder,
    Modulation,
    rearrange_rotary,
    rotary_table,
    run_cached,
)
from .flow_stacks import Stacks
from .graph import Arrays, Graph, Shape
from .layers import Linear, TimestepEmbedding, for_each, guided
from .vae import KLDecoder
from .weights import load_strict
from .xar_config import (
    CLUSTER_TOKENS,
    CLUSTERS,
    FAMILY,
    QUADRANTS,
    TOKENS,
    Config,
    configure,
    defaults,
    recognise,
)

__all__ = [
    "FAMILY",
    "XAR",
    "Config",
    "build",
    "configure",
    "graphs",
    "is_needless",
    "manifest",
    "recognise",
]

MODULATION_BYTES = 256 * 1024**2
"""Most memory for modulations computed at once."""
CACHE_CHECKS = (
    {"guidance": 1, "batch": 1, "past": 0},
    {"guidance": 2, "batch": 2, "past": CLUSTER_TOKENS},
    {"guidance": 2, "batch": 1, "past": 3 * CLUSTER_TOKENS},
)


class XAR(Stacks):
    """The whole model, with the keys of an official checkpoint."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, TOKENS)
        self.config = config
        self.time_embed = TimestepEmbedding(config.width)
        self.pred = Linear(config.width, config.vae_embed_dim)


class TimestepModulation(nn.Module):
    """The modulations of all blocks for a whole grid of timesteps.

    They depend on class and time only, never on the tokens, so the denoising loop need not
    read their weights, a third of the model.
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
    """The layers that prefill and denoising share."""

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
            self.register_buffer(f"{stack}_rotary", cluster_rotary(config.width // heads))

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

    Its tokens never see the noisy ones that follow, so this is all of the first call of the
    next cluster that the later calls do not repeat.
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
            tokens: the finished cluster, [64, batch, C].
            positions: places of its tokens in generation order, [64].
            modulation: for timestep 0, [guidance, batch, modulations].
            encoder_cache, decoder_cache: keys and values of the clusters before,
                [2 * depth, guidance, batch, heads, past, d].
        """
        encoder, decoder = self.split(modulation)
        x, encoder_cache = self.encode(tokens, positions, encoder, encoder_cache)
        rotary = self.decoder_rotary[:, positions]
        _, decoder_cache = run_cached(
            self.decoder_blocks, x, decoder, rotary, decoder_cache, cache_only=True
        )
        return encoder_cache, decoder_cache


class Denoise(Transformer):
    """One Euler-Maruyama step of a cluster: network, guidance and update."""

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
        step: Tensor,
        coefficients: Tensor,
        guidance_scale: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """`x` at the step's time to `x` at the next.

        The score of a linear path is -((1 - t) v + x) / t, so the drift v - t * score is
        (2 - t) v + x: linear in v and x, and guidance of drifts is guidance of velocities.

        Args:
            x: noisy cluster, [64, batch, C].
            positions: places of its tokens in generation order, [64].
            modulation: for the step's time, [guidance, batch, modulations]; guidance is
                (conditional, unconditional), or one entry for no guidance.
            encoder_cache, decoder_cache: keys and values of the clusters before,
                [2 * depth, guidance, batch, heads, past, d].
            step: [batch], row of `coefficients` that each image is at.
            coefficients: factors of x, of the velocity and of the noise, [steps, 3].
            guidance_scale: [batch].
            noise: standard normal, like x.
        """
        encoder, decoder = self.split(modulation)
        hidden, _ = self.encode(x, positions, encoder, encoder_cache)
        rotary = self.decoder_rotary.index_select(1, positions)
        hidden, _ = run_cached(self.decoder_blocks, hidden, decoder, rotary, decoder_cache)
        velocity = self.pred(self.decoder_norm(hidden))
        velocity = velocity.unflatten(0, modulation.shape[:2]).transpose(1, 2)
        of_x, of_velocity, of_noise = coefficients.index_select(0, step).split(1, dim=-1)
        return of_x * x + of_velocity * guided(velocity, guidance_scale) + of_noise * noise


def cluster_rotary(head_dim: int) -> Tensor:
    """Rotary table of the 16x16 grid in generation order, [2, 256, head_dim / 2]."""
    side = GRID // QUADRANTS
    table = rotary_table(GRID, head_dim).unflatten(1, (QUADRANTS, side, QUADRANTS, side))
    return table.transpose(2, 3).flatten(1, 4)


def build(state: Mapping[str, Tensor], config: Config, where: Path | str = "the checkpoint") -> XAR:
    """The model with the weights of `state` (strictly all of the model's)."""
    with torch.device("meta"):
        model = XAR(config)
    load_strict(model, rearrange_rotary(state, config.heads), where=where)
    return model.eval().requires_grad_(False)


def graphs(model: XAR, vae: KLDecoder | None = None) -> list[Graph]:
    """The graphs of a plan, in fp32: timestep, prefill, head and decoder."""
    config = model.config
    return [
        _timestep_graph(TimestepModulation(model), config),
        _prefill_graph(Prefill(model), config),
        _head_graph(Denoise(model), config),
        decoder_graph(LatentDecoder(QUADRANTS, vae), config.vae_embed_dim),
    ]


def manifest(config: Config) -> dict[str, Any]:
    """What the runtime needs to know of the model."""
    at_once = max(2, MODULATION_BYTES // (4 * config.modulations))
    tokens = {
        "clusters": CLUSTERS,
        "dimensions": {
            "past": [0, 2 * CLUSTER_TOKENS, 3 * CLUSTER_TOKENS],
            "rows": [1, min(100, at_once), at_once],
        },
    }
    return base_manifest(FAMILY, config, tokens, defaults(config))


def _timestep_graph(module: TimestepModulation, config: Config) -> Graph:
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
        checks=({"rows": 1}, {"rows": 16}),
    )


def _prefill_graph(module: Prefill, config: Config) -> Graph:
    inputs: dict[str, Shape] = {
        "tokens": (CLUSTER_TOKENS, "batch", config.vae_embed_dim),
        "positions": (CLUSTER_TOKENS,),
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
        checks=CACHE_CHECKS,
    )


def _head_graph(module: Denoise, config: Config) -> Graph:
    inputs: dict[str, Shape] = {
        "x": (CLUSTER_TOKENS, "batch", config.vae_embed_dim),
        "positions": (CLUSTER_TOKENS,),
        "modulation": ("guidance", "batch", config.modulations),
        **cache_shapes(config, "past"),
        "step": ("batch",),
        "coefficients": ("steps", 3),
        "guidance_scale": ("batch",),
        "noise": (CLUSTER_TOKENS, "batch", config.vae_embed_dim),
    }

    def example(sizes: Mapping[str, int]) -> Arrays:
        arrays = _cluster_example(inputs, sizes)
        steps, batch = sizes["steps"], sizes["batch"]
        arrays["step"] = np.arange(batch) % steps
        arrays["coefficients"] = np.tile(np.array([0.98, -0.03, 0.1], np.float32), (steps, 1))
        arrays["guidance_scale"] = np.linspace(1, 3, batch, dtype=np.float32)
        return arrays

    return Graph(
        name="head",
        module=module,
        inputs=inputs,
        outputs={"next_x": inputs["x"]},
        example=example,
        sizes={"guidance": 2, "batch": 3, "past": 5, "steps": 9},
        checks=tuple({**sizes, "steps": 4} for sizes in CACHE_CHECKS),
    )


def _cluster_example(inputs: Mapping[str, Shape], sizes: Mapping[str, int]) -> Arrays:
    rng = np.random.default_rng(0)
    arrays: Arrays = {name: normal(rng, shape, sizes) for name, shape in inputs.items()}
    start = sizes["past"] // CLUSTER_TOKENS * CLUSTER_TOKENS
    arrays["positions"] = start + np.arange(CLUSTER_TOKENS)
    return arrays
