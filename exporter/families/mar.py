"""MAR: masked autoregressive transformer with a diffusion head (arXiv 2406.11838)."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...engines.plan.traits import GraphTraits, Role
from ..checkpoints.state_dict import load_strict
from ..graphs.graph import Arrays, Graph, Shape
from ..layers.diffusion_head import DiffusionMLP, head_graphs, timestep_graph
from ..layers.transformer import Block, LayerNorm, Linear, QueryBlock, for_each
from ..vae.decoder import KLDecoder, check_pixels
from .configs.mar import (
    FAMILY,
    SIZES,
    MARConfig,
    configure,
    mask_dimensions,
    official_config,
    recognise,
)

__all__ = [
    "FAMILY",
    "MAR",
    "SIZES",
    "Config",
    "build",
    "configure",
    "graphs",
    "manifest",
    "official_config",
    "recognise",
]

READS_TEXT = False


class MAR(nn.Module):
    """The whole model, with the keys of an official checkpoint."""

    def __init__(self, config: MARConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder = config.encoder_embed_dim, config.decoder_embed_dim
        positions = config.buffer_size + config.tokens
        self.class_emb = nn.Embedding(config.class_num, encoder)
        self.fake_latent = nn.Parameter(torch.zeros(1, encoder))
        self.z_proj = Linear(config.channels, encoder)
        self.z_proj_ln = LayerNorm(encoder)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, encoder))
        self.encoder_blocks = nn.ModuleList(
            Block(encoder, config.encoder_num_heads, config.mlp_ratio)
            for _ in range(config.encoder_depth)
        )
        self.encoder_norm = LayerNorm(encoder)
        self.decoder_embed = Linear(encoder, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, decoder))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder, config.decoder_num_heads, config.mlp_ratio)
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = LayerNorm(decoder)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.tokens, decoder))
        self.diffloss = nn.ModuleDict(
            {"net": DiffusionMLP(config.channels, decoder, config.diffloss_w, config.diffloss_d)}
        )

    @property
    def head(self) -> DiffusionMLP:
        """The diffusion head."""
        head = self.diffloss["net"]
        assert isinstance(head, DiffusionMLP)
        return head


class MaskedDecoder(nn.Module):
    """The second half of the backbone: computes the condition of the predicted tokens.

    Tokens are in generation order: [buffer, visible, predicted, the rest]. Attention does not
    depend on the order, so tokens need not be moved back to the grid, and the predicted ones are
    one contiguous slice.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.buffer_size = model.config.buffer_size
        buffer = model.decoder_pos_embed_learned.detach()[0, : self.buffer_size]
        self.register_buffer("buffer_position", buffer.clone())
        self.register_buffer("mask_token", model.mask_token.detach()[0].clone())
        self.decoder_embed, self.decoder_norm = model.decoder_embed, model.decoder_norm
        self.decoder_blocks = nn.ModuleList(model.decoder_blocks[:-1])
        last = model.decoder_blocks[-1]
        assert isinstance(last, Block)
        self.last_block = QueryBlock(last)
        self.cond_embed = model.head.cond_embed

    def forward(
        self,
        encoded: Tensor,
        guidance: int,
        positions: Tensor,
        predicted: Tensor,
        decoder_position: Tensor,
        condition_position: Tensor,
    ) -> Tensor:
        """The embedded condition, [guidance, predicted * batch, width].

        Args:
            encoded: buffer and visible tokens, [guidance * batch, buffer + visible, width].
            positions: grid position of every token in generation order, [L, batch].
            predicted: positions predicted now, [predicted, batch].
            decoder_position, condition_position: position embeddings of the grid, [L, width].
        """
        x = self.tokens(encoded, guidance, positions, decoder_position)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.last_block(x, encoded.shape[1], predicted.shape[0])
        decoded = x.unflatten(0, (guidance, positions.shape[1])).transpose(1, 2)
        return self.condition(decoded, condition_position[predicted])

    def tokens(
        self, encoded: Tensor, guidance: int, positions: Tensor, decoder_position: Tensor
    ) -> Tensor:
        """The input of the blocks: buffer, visible tokens, and mask tokens for the rest.

        Returns:
            [guidance * batch, buffer + positions, width].
        """
        x = self.decoder_embed(encoded)
        buffer, known = x[:, : self.buffer_size], x[:, self.buffer_size :]
        image = self.image_tokens(known, guidance, positions, decoder_position)
        return torch.cat([buffer + self.buffer_position, *image], dim=1)

    def image_tokens(
        self, known: Tensor, guidance: int, positions: Tensor, decoder_position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Known tokens at their places, and mask tokens for the rest.

        Args:
            known: from `decoder_embed`, [guidance * batch, visible, width].
            guidance, positions, decoder_position: see `forward`.

        Returns:
            [guidance * batch, visible, width] and [guidance * batch, positions - visible, width].
        """
        visible = known.shape[1]
        place = decoder_position[positions[:visible]].transpose(0, 1)
        masked = (decoder_position + self.mask_token)[positions[visible:]].transpose(0, 1)
        return known + for_each(place, guidance), for_each(masked, guidance)

    def condition(self, decoded: Tensor, place: Tensor) -> Tensor:
        """Decoded tokens [guidance, predicted, batch, width] and their position embeddings."""
        result: Tensor = self.cond_embed(self.decoder_norm(decoded) + place).flatten(1, 2)
        return result


class Backbone(nn.Module):
    """The condition of the tokens that one AR iteration predicts."""

    def __init__(self, model: MAR) -> None:
        super().__init__()
        skip = model.config.buffer_size
        classes = torch.cat([model.class_emb.weight, model.fake_latent])
        self.register_buffer("class_table", classes.detach().clone())
        encoder = model.encoder_pos_embed_learned.detach()[0]
        self.register_buffer("encoder_buffer_position", encoder[:skip].clone())
        self.register_buffer("encoder_position", encoder[skip:].clone())
        decoder = model.decoder_pos_embed_learned.detach()[0]
        self.register_buffer("decoder_position", decoder[skip:].clone())
        self.register_buffer("condition_position", model.diffusion_pos_embed_learned.detach()[0])
        self.z_proj, self.z_proj_ln = model.z_proj, model.z_proj_ln
        self.encoder_blocks, self.encoder_norm = model.encoder_blocks, model.encoder_norm
        self.decode = MaskedDecoder(model)

    def forward(
        self, tokens: Tensor, positions: Tensor, predicted: Tensor, class_index: Tensor
    ) -> Tensor:
        """The embedded condition of the predicted tokens, [guidance, predicted * batch, width].

        Args:
            tokens: the tokens known so far, in generation order, [visible, batch, C].
            positions: grid position of every token in generation order, [L, batch].
            predicted: positions predicted now, which are
                `positions[visible : visible + predicted]`, [predicted, batch].
            class_index: class of each image, [guidance, batch]; the number of classes means no
                class.
        """
        encoded = self.encode(tokens, positions[: tokens.shape[0]], class_index)
        result: Tensor = self.decode(
            encoded,
            class_index.shape[0],
            positions,
            predicted,
            self.decoder_position,
            self.condition_position,
        )
        return result

    def encode(self, tokens: Tensor, positions: Tensor, class_index: Tensor) -> Tensor:
        """The encoder over buffer and visible tokens, [guidance * batch, buffer + visible, width].

        Both guidance halves have the same known tokens before the first attention layer, so these
        are projected and normalised once.
        """
        x = self.embed(tokens, positions, class_index)
        for block in self.encoder_blocks:
            x = block(x)
        result: Tensor = self.encoder_norm(x)
        return result

    def embed(self, tokens: Tensor, positions: Tensor, class_index: Tensor) -> Tensor:
        """The input of the encoder, [guidance * batch, buffer + tokens, width]."""
        buffer = self.class_table[class_index].unsqueeze(2) + self.encoder_buffer_position
        buffer = self.z_proj_ln(buffer).flatten(0, 1)
        known = for_each(self.embed_known(tokens, positions), class_index.shape[0])
        return torch.cat([buffer, known], dim=1)

    def embed_known(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The known tokens in the input of the encoder, [batch, tokens, width]."""
        known = self.z_proj_ln(self.z_proj(tokens) + self.encoder_position[positions])
        return known.transpose(0, 1)


class Decoder(nn.Module):
    """Tokens in generation order to latents, and to pixels if there is a VAE or none is needed."""

    def __init__(self, config: MARConfig, vae: KLDecoder | None) -> None:
        super().__init__()
        self.config = config
        self.to_pixels: nn.Module | None = vae
        self.pixel_channels = vae.config.out_channels if vae else config.vae_embed_dim
        if vae is None and config.vae_stride == 1:
            check_pixels(config.vae_embed_dim, "vae_stride is 1, so the model makes")
            self.to_pixels = nn.Identity()

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """`tokens` [L, batch, C], `positions` [L, batch] -> latents [batch, c, h, w] and image."""
        config = self.config
        grid, patch = config.grid, config.patch_size
        place = positions.unsqueeze(-1).expand(-1, -1, config.channels)
        x = torch.zeros_like(tokens).scatter(0, place, tokens).transpose(0, 1)
        x = x.unflatten(1, (grid, grid)).unflatten(3, (config.vae_embed_dim, patch, patch))
        latents = x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        if self.to_pixels is None:
            return latents
        return latents, self.to_pixels(latents)


def build(state: Mapping[str, Tensor], config: MARConfig, where: Path | str) -> MAR:
    """The model with the weights of `state`, which must have all tensors of the model."""
    with torch.device("meta"):
        model = MAR(config)
    load_strict(model, state, where=where)
    return model.eval()


def unused_at_inference(key: str) -> bool:
    """Whether inference does not need a tensor of an official checkpoint: it needs all."""
    return False


def released(state: Mapping[str, Tensor], config: MARConfig) -> object:
    """The weights as the `model` of a training checkpoint."""
    del config
    return {"model": dict(state)}


def manifest(config: MARConfig) -> dict[str, Any]:
    """The model's part of the manifest, for the runtime."""
    side = config.grid * config.patch_size
    guidance = {size.width: size.guidance_scale for size in SIZES.values()}
    return {
        "family": FAMILY,
        "model": asdict(config),
        "tokens": {
            "count": config.tokens,
            "channels": config.channels,
            "latent_shape": [config.vae_embed_dim, side, side],
            "dimensions": mask_dimensions(config.tokens),
        },
        "image": {"height": config.img_size, "width": config.img_size},
        "defaults": {
            "num_iterations": min(64, config.tokens),
            "steps": "50:5",
            "strategy": "linear",
            "sampler": "ddpm",
            "guidance_scale": guidance.get(config.encoder_embed_dim, 3.0),
            "guidance_schedule": "linear",
            "temperature": 1.0,
        },
    }


Config = MARConfig
Model = MAR


def graphs(model: MAR, vae: KLDecoder | None = None) -> list[Graph]:
    """The graphs of a plan: backbone, timestep, those of the head, decoder; all in fp32."""
    config = model.config
    return [
        backbone_graph(Backbone(model), config),
        timestep_graph(model.head.time_embed, config.diffloss_w),
        *head_graphs(model.head),
        _decoder_graph(Decoder(config, vae), config),
    ]


def cached_graphs(model: MAR) -> tuple[list[Graph], dict[str, list[int]]]:
    """The graphs of a cached backbone, and the sizes of their additional dimensions."""
    # These modules import this one.
    from .cached.mar import cached_graphs as build_graphs
    from .cached.shapes import cache_dimensions

    length = manifest(model.config)["tokens"]["count"]
    return build_graphs(model, Backbone(model)), cache_dimensions(length, model.config)


def backbone_graph(module: Backbone, config: MARConfig) -> Graph:
    """The graph of the backbone."""
    length, channels = config.tokens, config.channels

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        batch, visible = sizes["batch"], sizes["visible"]
        positions = rng.permuted(np.tile(np.arange(length)[:, None], batch), axis=0)
        classes = rng.integers(0, config.class_num, (sizes["guidance"], batch))
        classes[1:] = config.class_num
        return {
            "tokens": rng.standard_normal((visible, batch, channels), np.float32),
            "positions": positions,
            "predicted": positions[visible : visible + sizes["predicted"]],
            "class_index": classes,
        }

    return Graph(
        name="backbone",
        module=module,
        inputs={
            "tokens": ("visible", "batch", channels),
            "positions": (length, "batch"),
            "predicted": ("predicted", "batch"),
            "class_index": ("guidance", "batch"),
        },
        outputs={"condition": ("guidance", "rows", config.diffloss_w)},
        example=example,
        sizes={"guidance": 2, "batch": 3, "visible": min(7, length - 5), "predicted": 5},
        traits=GraphTraits(Role.ITERATION, split="batch"),
        checks=(
            {"guidance": 1, "batch": 1, "visible": 0, "predicted": 1},
            {"guidance": 2, "batch": 1, "visible": length - 2, "predicted": 2},
            {"guidance": 2, "batch": 4, "visible": length // 2, "predicted": 3},
        ),
    )


def _decoder_graph(module: Decoder, config: MARConfig) -> Graph:
    length, side = config.tokens, config.grid * config.patch_size

    def example(sizes: Mapping[str, int]) -> Arrays:
        rng = np.random.default_rng(0)
        batch = sizes["batch"]
        return {
            "tokens": 0.25 * rng.standard_normal((length, batch, config.channels), np.float32),
            "positions": rng.permuted(np.tile(np.arange(length)[:, None], batch), axis=0),
        }

    outputs: dict[str, Shape] = {"latents": ("batch", config.vae_embed_dim, side, side)}
    if module.to_pixels is not None:
        outputs["image"] = ("batch", module.pixel_channels, config.img_size, config.img_size)
    return Graph(
        name="decoder",
        module=module,
        inputs={"tokens": (length, "batch", config.channels), "positions": (length, "batch")},
        outputs=outputs,
        example=example,
        sizes={"batch": 3},
        traits=GraphTraits(Role.DECODE, quantizable=False, split="batch"),
        checks=({"batch": 1},),
    )
