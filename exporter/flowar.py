"""FlowAR: scale-wise autoregression with a flow-matching transformer head (arXiv 2412.15205)."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .flow_config import is_needless
from .flow_graphs import base_manifest, cache_shapes, classes, decoder_graph, normal
from .flow_head import ConditionKeys, CrossHeadStep, FlowHead, HeadStep, TimestepTables
from .flow_layers import (
    GRID,
    LatentDecoder,
    Modulation,
    rearrange_rotary,
    rotary_table,
    run_cached,
)
from .flow_stacks import Stacks
from .flowar_config import (
    FAMILY,
    HEAD_DIM,
    POSITIONS,
    SCALES,
    Config,
    configure,
    defaults,
    recognise,
)
from .graph import Arrays, Graph, Shape
from .vae import KLDecoder
from .weights import load_strict

__all__ = [
    "FAMILY",
    "Config",
    "FlowAR",
    "build",
    "configure",
    "graphs",
    "is_needless",
    "manifest",
    "recognise",
]


class FlowAR(Stacks):
    """The whole model, with the keys of an official checkpoint."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, POSITIONS)
        self.config = config
        width = config.width
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, POSITIONS, width))
        self.flownet = FlowHead(
            config.vae_embed_dim, width, config.diffloss_w, config.diffloss_d, config.cross
        )


class ClassModulation(nn.Module):
    """The modulations of all backbone blocks; they depend on the class only."""

    def __init__(self, model: FlowAR) -> None:
        super().__init__()
        self.class_emb = model.class_emb
        blocks = [*model.encoder_blocks, *model.decoder_blocks]
        self.modulation = Modulation([block.ada_lin[1] for block in blocks])

    def forward(self, class_index: Tensor) -> Tensor:
        """`class_index` [guidance, batch] -> [guidance, batch, modulations]."""
        result: Tensor = self.modulation(self.class_emb(class_index))
        return result


class Backbone(nn.Module):
    """One AR step: the tokens of one scale, and what the head needs to know of them.

    Blocks keep the keys and values of earlier scales, so no token is computed twice. The
    first scale starts from the class embedding, each other one from the latents sampled
    before, resized.
    """

    def __init__(self, model: FlowAR) -> None:
        super().__init__()
        config = model.config
        self.class_emb = model.class_emb
        self.z_proj, self.z_proj_ln = model.z_proj, model.z_proj_ln
        self.encoder_blocks, self.encoder_norm = model.encoder_blocks, model.encoder_norm
        self.decoder_embed, self.decoder_norm = model.decoder_embed, model.decoder_norm
        self.decoder_blocks, self.cond_embed = model.decoder_blocks, model.flownet.cond_embed
        self.crossed = ConditionKeys(model.flownet) if config.cross else None
        for name in ("encoder", "decoder", "diffusion"):
            table = getattr(model, f"{name}_pos_embed_learned").detach()[0]
            self.register_buffer(f"{name}_position", table)
        for stack in ("encoder", "decoder"):
            heads = getattr(config, f"{stack}_num_heads")
            self.register_buffer(f"{stack}_rotary", scale_rotary(config.width // heads))
        self.register_buffer("head_rotary", scale_rotary(HEAD_DIM))
        self.register_buffer("resize", resize_table())

    def forward(
        self,
        previous: Tensor,
        positions: Tensor,
        class_index: Tensor,
        modulation: Tensor,
        encoder_cache: Tensor,
        decoder_cache: Tensor,
    ) -> tuple[Tensor, ...]:
        """One scale.

        Args:
            previous: latents sampled at the scale before, [previous, batch, C]; for the first
                scale any one token, which is not used.
            positions: places of the scale's tokens among all 341, [tokens].
            class_index: [guidance, batch]; the number of classes stands for no class.
            modulation: result of `ClassModulation`, [guidance, batch, modulations].
            encoder_cache, decoder_cache: keys and values of the scales before,
                [2 * depth, guidance, batch, heads, past, d].

        Returns:
            The head's embedded condition [guidance, batch, tokens, W], for a head with
            cross-attention also its keys and values
            [guidance, 2 * head depth, batch, heads, tokens, d], and the two caches with the
            scale's own tokens appended.
        """
        guidance, batch = class_index.shape
        x = self.inputs(previous, positions, class_index).flatten(0, 1)
        modulations = modulation.flatten(0, 1).unsqueeze(1).split(6 * x.shape[-1], dim=-1)
        depth = len(self.encoder_blocks)
        rotary = self.encoder_rotary[:, positions]
        x, encoder_cache = run_cached(
            self.encoder_blocks, self.z_proj_ln(x), modulations[:depth], rotary, encoder_cache
        )
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_position[positions]
        rotary = self.decoder_rotary[:, positions]
        x, decoder_cache = run_cached(
            self.decoder_blocks, x, modulations[depth:], rotary, decoder_cache
        )
        z = self.decoder_norm(x) + self.diffusion_position[positions]
        condition = self.cond_embed(z).unflatten(0, (guidance, batch))
        if self.crossed is None:
            return condition, encoder_cache, decoder_cache
        kept = self.crossed(z, self.head_rotary[:, positions])
        kept = kept.unflatten(1, (guidance, batch)).transpose(0, 1)
        return condition, kept, encoder_cache, decoder_cache

    def inputs(self, previous: Tensor, positions: Tensor, class_index: Tensor) -> Tensor:
        """What the encoder starts from, [guidance, batch, tokens, width]."""
        weights = self.resize[positions].narrow(1, 0, previous.shape[0])
        x = self.z_proj(weights @ previous.transpose(0, 1))
        first = (positions == 0).unsqueeze(-1)
        x = torch.where(first, self.class_emb(class_index).unsqueeze(2), x)
        return x + self.encoder_position[positions]


def scale_rotary(head_dim: int) -> Tensor:
    """Rotary table of the tokens of all scales, [2, 341, head_dim / 2]."""
    return torch.cat([rotary_table(side, head_dim) for side in SCALES], dim=1)


def resize_table() -> Tensor:
    """Every scale's input as weights on the scale before, [341, 64].

    The map is resized to 16x16 bicubically, then averaged down to the new scale; both are
    linear, so together they are one matrix a scale. Unused columns are zero.
    """
    table = torch.zeros(POSITIONS, SCALES[-2] ** 2, dtype=torch.float64)
    start = 1
    for side, following in pairwise(SCALES):
        units = torch.eye(side * side, dtype=torch.float64).unflatten(1, (1, side, side))
        full = F.interpolate(units, (GRID, GRID), mode="bicubic")
        small = F.interpolate(full, (following, following), mode="area")
        rows = following * following
        table[start : start + rows, : side * side] = small.flatten(1).T
        start += rows
    return table.float()


def build(
    state: Mapping[str, Tensor], config: Config, where: Path | str = "the checkpoint"
) -> FlowAR:
    """The model with the weights of `state` (strictly all of the model's)."""
    heads = {**config.heads, "flownet.res_blocks.": config.diffloss_w // HEAD_DIM}
    with torch.device("meta"):
        model = FlowAR(config)
    load_strict(model, rearrange_rotary(state, heads), where=where)
    return model.eval().requires_grad_(False)


def graphs(model: FlowAR, vae: KLDecoder | None = None) -> list[Graph]:
    """The graphs of a plan, in fp32: modulation, backbone, timestep, head and decoder."""
    config = model.config
    return [
        _modulation_graph(ClassModulation(model), config),
        _backbone_graph(Backbone(model), config),
        _timestep_graph(TimestepTables(model.flownet), config),
        _head_graph(model.flownet, config),
        decoder_graph(LatentDecoder(1, vae), config.vae_embed_dim),
    ]


def manifest(config: Config) -> dict[str, Any]:
    """What the runtime needs to know of the model."""
    counts = [side * side for side in SCALES]
    tokens = {
        "scales": list(SCALES),
        "dimensions": {
            "previous": [1, counts[-2], counts[-2]],
            "tokens": [1, counts[-1], counts[-1]],
            "past": [0, POSITIONS - counts[-1], POSITIONS - counts[-1]],
        },
    }
    return base_manifest(FAMILY, config, tokens, defaults(config))


def _modulation_graph(module: ClassModulation, config: Config) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        return {"class_index": classes(np.random.default_rng(0), sizes, config.class_num)}

    return Graph(
        name="modulation",
        module=module,
        inputs={"class_index": ("guidance", "batch")},
        outputs={"modulation": ("guidance", "batch", config.modulations)},
        example=example,
        sizes={"guidance": 2, "batch": 3},
        checks=({"guidance": 1, "batch": 1}, {"guidance": 2, "batch": 2}),
    )


def _backbone_graph(module: Backbone, config: Config) -> Graph:
    caches = cache_shapes(config, "past")
    previous: Shape = ("previous", "batch", config.vae_embed_dim)
    modulation: Shape = ("guidance", "batch", config.modulations)

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        return {
            "previous": normal(rng, previous, sizes),
            "positions": sizes["past"] + np.arange(sizes["tokens"]),
            "class_index": classes(rng, sizes, config.class_num),
            "modulation": normal(rng, modulation, sizes),
            **{name: normal(rng, shape, sizes) for name, shape in caches.items()},
        }

    outputs: dict[str, Shape] = {
        "condition": ("guidance", "batch", "tokens", config.diffloss_w),
        "keys_values": _keys_values(config),
        **cache_shapes(config, "past_and_present", "next_"),
    }
    if not config.cross:
        del outputs["keys_values"]
    return Graph(
        name="backbone",
        module=module,
        inputs={
            "previous": previous,
            "positions": ("tokens",),
            "class_index": ("guidance", "batch"),
            "modulation": modulation,
            **caches,
        },
        outputs=outputs,
        example=example,
        sizes={"guidance": 2, "batch": 3, "previous": 4, "tokens": 16, "past": 5},
        checks=(
            {"guidance": 1, "batch": 1, "previous": 1, "tokens": 1, "past": 0},
            {"guidance": 2, "batch": 2, "previous": 1, "tokens": 4, "past": 1},
            {"guidance": 2, "batch": 1, "previous": 64, "tokens": 256, "past": 85},
        ),
    )


def _timestep_graph(module: TimestepTables, config: Config) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        return {"timestep": np.linspace(1000, 20, sizes["steps"], dtype=np.float32).round()}

    outputs: dict[str, Shape] = {"embedding": ("steps", config.diffloss_w)}
    if config.cross:
        outputs["modulation"] = ("steps", 3 * config.diffloss_d * config.diffloss_w)
    return Graph(
        name="timestep",
        module=module,
        inputs={"timestep": ("steps",)},
        outputs=outputs,
        example=example,
        sizes={"steps": 9},
        checks=({"steps": 1}, {"steps": 50}),
    )


def _head_graph(head: FlowHead, config: Config) -> Graph:
    width = config.diffloss_w
    inputs: dict[str, Shape] = {
        "x": ("tokens", "batch", config.vae_embed_dim),
        "condition": ("guidance", "batch", "tokens", width),
        "keys_values": _keys_values(config),
        "positions": ("tokens",),
        "step": ("batch",),
        "embedding": ("steps", width),
        "modulation": ("steps", 3 * config.diffloss_d * width),
        "coefficients": ("steps", 2),
        "guidance_scale": ("batch",),
    }
    if not config.cross:
        del inputs["keys_values"], inputs["modulation"]

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        arrays: Arrays = {name: normal(rng, shape, sizes) for name, shape in inputs.items()}
        tokens, batch = sizes["tokens"], sizes["batch"]
        before = sum(side * side for side in SCALES if side * side < tokens)
        arrays["positions"] = before + np.arange(tokens)
        arrays["step"] = rng.integers(0, sizes["steps"], batch)
        arrays["coefficients"] = np.tile(np.array([1, -0.04], np.float32), (sizes["steps"], 1))
        arrays["guidance_scale"] = rng.uniform(1, 4, batch).astype(np.float32)
        return arrays

    step = CrossHeadStep if config.cross else HeadStep
    return Graph(
        name="head",
        module=step(head, scale_rotary(HEAD_DIM)),
        inputs=inputs,
        outputs={"next_x": ("tokens", "batch", config.vae_embed_dim)},
        example=example,
        sizes={"guidance": 2, "batch": 3, "tokens": 4, "steps": 9},
        checks=(
            {"guidance": 1, "batch": 1, "tokens": 1, "steps": 2},
            {"guidance": 2, "batch": 2, "tokens": 16, "steps": 9},
            {"guidance": 2, "batch": 1, "tokens": 256, "steps": 50},
        ),
    )


def _keys_values(config: Config) -> Shape:
    heads = config.diffloss_w // HEAD_DIM
    return ("guidance", 2 * config.diffloss_d, "batch", heads, "tokens", HEAD_DIM)
