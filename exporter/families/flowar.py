"""FlowAR: scale-wise autoregression with a flow-matching transformer head (arXiv 2412.15205)."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...engines.plan.traits import GraphTraits, Role
from ..checkpoints.state_dict import load_strict
from ..graphs.graph import Arrays, Graph, Shape
from ..layers.flow import (
    LatentDecoder,
    Modulation,
    rearrange_rotary,
    rotary_table,
    run_cached,
)
from ..layers.flow_head import ConditionKeys, FlowHead, TimestepTables, head_step
from ..layers.flow_stacks import Stacks
from ..vae.decoder import KLDecoder
from .configs.flow import HEAD_DIM, released, unused_at_inference
from .configs.flowar import (
    FAMILY,
    SIZES,
    FlowARConfig,
    configure,
    defaults,
    official_config,
    recognise,
)
from .flow_graphs import base_manifest, cache_shapes, classes, decoder_graph, normal

__all__ = [
    "FAMILY",
    "SIZES",
    "Config",
    "FlowAR",
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


class FlowAR(Stacks):
    """The whole model, with the keys of an official checkpoint."""

    def __init__(self, config: FlowARConfig) -> None:
        super().__init__(config, config.positions)
        self.config = config
        width = config.width
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.positions, width))
        self.flownet = FlowHead(
            config.vae_embed_dim, width, config.diffloss_w, config.diffloss_d, config.cross
        )


class ClassModulation(nn.Module):
    """The modulations of all blocks of the backbone, which depend on the class only."""

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
    """One AR iteration: the condition of the head for the tokens of one scale.

    Keys and values of earlier scales are cached, so no token is computed twice. The input of the
    first scale is the class embedding. The input of every other scale is the latents sampled at the
    scale before it, resized.
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
            self.register_buffer(f"{stack}_rotary", scale_rotary(config, config.width // heads))
        self.register_buffer("head_rotary", scale_rotary(config, HEAD_DIM))
        self.register_buffer("resize", resize_table(config.scales))

    def forward(
        self,
        previous: Tensor,
        positions: Tensor,
        class_index: Tensor,
        modulation: Tensor,
        encoder_cache: Tensor,
        decoder_cache: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute one scale.

        Args:
            previous: latents sampled at the previous scale, [previous, batch, C]; for the first
                scale a single token, which is not used.
            positions: positions of the scale's tokens in the sequence of all scales, [tokens].
            class_index: [guidance, batch]; the number of classes means no class.
            modulation: result of `ClassModulation`, [guidance, batch, modulations].
            encoder_cache, decoder_cache: keys and values of the earlier scales,
                [2 * depth, guidance, batch, heads, past, d].

        Returns:
            The embedded condition of the head, [guidance, batch, tokens, W]; for a head with
            cross-attention also keys and values,
            [guidance, 2 * head depth, batch, heads, tokens, d]; and the two caches with the tokens
            of this scale appended.
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
        """The input of the encoder, [guidance, batch, tokens, width]."""
        weights = self.resize[positions].narrow(1, 0, previous.shape[0])
        x = self.z_proj(weights @ previous.transpose(0, 1))
        first = (positions == 0).unsqueeze(-1)
        x = torch.where(first, self.class_emb(class_index).unsqueeze(2), x)
        return x + self.encoder_position[positions]


def scale_rotary(config: FlowARConfig, head_dim: int) -> Tensor:
    """Rotary table of the tokens of all scales, [2, positions, head_dim / 2]."""
    parts = [rotary_table(side, head_dim, config.grid) for side in config.scales]
    return torch.cat(parts, dim=1)


def resize_table(scales: Sequence[int]) -> Tensor:
    """Weights that compute the input of every scale from the latents of the previous scale.

    The latents are resized bicubically to the last scale and then averaged down to the new one.
    Both are linear, so together they are one matrix for each scale.

    Returns:
        The rows of these matrices, [positions, tokens of the last scale but one], with 0 in
        unused columns.
    """
    positions, grid = sum(side * side for side in scales), scales[-1]
    table = torch.zeros(positions, scales[-2] ** 2, dtype=torch.float64)
    start = 1
    for side, following in pairwise(scales):
        units = torch.eye(side * side, dtype=torch.float64).unflatten(1, (1, side, side))
        full = F.interpolate(units, (grid, grid), mode="bicubic")
        small = F.interpolate(full, (following, following), mode="area")
        rows = following * following
        table[start : start + rows, : side * side] = small.flatten(1).T
        start += rows
    return table.float()


def build(
    state: Mapping[str, Tensor], config: FlowARConfig, where: Path | str = "the checkpoint"
) -> FlowAR:
    """The model with the weights of `state`, which must have all tensors of the model."""
    heads = {**config.heads, "flownet.res_blocks.": config.diffloss_w // HEAD_DIM}
    with torch.device("meta"):
        model = FlowAR(config)
    load_strict(model, rearrange_rotary(state, heads), where=where)
    return model.eval().requires_grad_(False)


Config = FlowARConfig
Model = FlowAR


def graphs(model: FlowAR, vae: KLDecoder | None = None) -> list[Graph]:
    """The graphs of a plan, in fp32: modulation, backbone, timestep, head and decoder."""
    config = model.config
    return [
        _modulation_graph(ClassModulation(model), config),
        _backbone_graph(Backbone(model), config),
        _timestep_graph(TimestepTables(model.flownet), config),
        _head_graph(model.flownet, config),
        decoder_graph(LatentDecoder(config.grid, 1, vae), config.vae_embed_dim),
    ]


def manifest(config: FlowARConfig) -> dict[str, Any]:
    """The model's part of the manifest, for the runtime."""
    counts = [side * side for side in config.scales]
    earlier = config.positions - counts[-1]
    tokens = {
        "scales": list(config.scales),
        "dimensions": {
            "previous": [1, counts[-2], counts[-2]],
            "tokens": [1, counts[-1], counts[-1]],
            "past": [0, earlier, earlier],
        },
    }
    return base_manifest(FAMILY, config, tokens, defaults(config))


def _modulation_graph(module: ClassModulation, config: FlowARConfig) -> Graph:
    def example(sizes: Mapping[str, int]) -> Arrays:
        return {"class_index": classes(np.random.default_rng(0), sizes, config.class_num)}

    return Graph(
        name="modulation",
        module=module,
        inputs={"class_index": ("guidance", "batch")},
        outputs={"modulation": ("guidance", "batch", config.modulations)},
        example=example,
        sizes={"guidance": 2, "batch": 3},
        traits=GraphTraits(Role.ONCE, quantizable=False, split="batch"),
        checks=({"guidance": 1, "batch": 1}, {"guidance": 2, "batch": 2}),
    )


def _backbone_graph(module: Backbone, config: FlowARConfig) -> Graph:
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
        traits=GraphTraits(Role.ITERATION, split="batch"),
        checks=(
            {"guidance": 1, "batch": 1, "previous": 1, "tokens": 1, "past": 0},
            {"guidance": 2, "batch": 2, "previous": 1, "tokens": 4, "past": 1},
            {
                "guidance": 2,
                "batch": 1,
                "previous": config.scales[-2] ** 2,
                "tokens": config.grid**2,
                "past": config.positions - config.grid**2,
            },
        ),
    )


def _timestep_graph(module: TimestepTables, config: FlowARConfig) -> Graph:
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
        traits=GraphTraits(Role.TIMESTEP, quantizable=False),
        checks=({"steps": 1}, {"steps": 50}),
    )


def _head_graph(head: FlowHead, config: FlowARConfig) -> Graph:
    width = config.diffloss_w
    step = head_step(head, scale_rotary(config, HEAD_DIM))
    inputs = step.shapes(
        {
            "x": ("tokens", "batch", config.vae_embed_dim),
            "condition": ("guidance", "batch", "tokens", width),
            "keys_values": _keys_values(config),
            "positions": ("tokens",),
            "embedding": ("steps", width),
            "modulation": ("steps", 3 * config.diffloss_d * width),
        },
        "batch",
    )

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        arrays: Arrays = {name: normal(rng, shape, sizes) for name, shape in inputs.items()}
        tokens, batch = sizes["tokens"], sizes["batch"]
        before = sum(side * side for side in config.scales if side * side < tokens)
        arrays["positions"] = before + np.arange(tokens)
        arrays["step"] = rng.integers(0, sizes["steps"], batch)
        arrays["coefficients"] = np.tile(np.array([1, -0.04], np.float32), (sizes["steps"], 1))
        arrays["guidance_scale"] = rng.uniform(1, 4, batch).astype(np.float32)
        return arrays

    return Graph(
        name="head",
        module=step,
        inputs=inputs,
        outputs={"next_x": ("tokens", "batch", config.vae_embed_dim)},
        example=example,
        sizes={"guidance": 2, "batch": 3, "tokens": 4, "steps": 9},
        traits=GraphTraits(Role.STEP, split="batch"),
        checks=(
            {"guidance": 1, "batch": 1, "tokens": 1, "steps": 2},
            {"guidance": 2, "batch": 2, "tokens": 16, "steps": 9},
            {"guidance": 2, "batch": 1, "tokens": config.grid**2, "steps": 50},
        ),
    )


def _keys_values(config: FlowARConfig) -> Shape:
    heads = config.diffloss_w // HEAD_DIM
    return ("guidance", 2 * config.diffloss_d, "batch", heads, "tokens", HEAD_DIM)
