"""The demo's MAR: masked tokens of 2x2 latents, each sampled by a diffusion head."""

import argparse
import math
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.exporter.families.configs.mar import MARConfig
from disa.exporter.families.mar import MAR
from disa.exporter.layers.diffusion_head import DiffusionMLP, ResidualBlock
from disa.exporter.layers.transformer import Block, attention

from ..data.fashion_mnist import CLASS_NAMES, SIZE
from ..data.latents import Latents
from .diffusion import DiffusionLoss

CONFIG = MARConfig(
    img_size=SIZE,
    vae_stride=4,
    patch_size=2,
    vae_embed_dim=4,
    class_num=len(CLASS_NAMES),
    buffer_size=4,
    encoder_embed_dim=128,
    encoder_depth=4,
    encoder_num_heads=4,
    decoder_embed_dim=128,
    decoder_depth=4,
    decoder_num_heads=4,
    diffloss_d=3,
    diffloss_w=256,
)
LABEL_DROP = 0.1
LOWEST_MASK_RATIO = 0.7
HEAD_TIMESTEPS = 2
"""Random timesteps for each masked token: the head learns more from each backbone pass."""


def build() -> MAR:
    """A new model."""
    model = MAR(CONFIG)
    initialise(model)
    return model


def checkpoint(weights: dict[str, Tensor]) -> dict[str, Any]:
    """A file in the layout of the official training checkpoints."""
    args = argparse.Namespace(
        model="mar_demo",
        **asdict(CONFIG),
        class_names=list(CLASS_NAMES),
        label_drop_prob=LABEL_DROP,
    )
    # The same tensors under both names: torch.save stores them only once.
    return {"model": weights, "model_ema": weights, "optimizer": {}, "epoch": 0, "args": args}


def initialise(model: MAR) -> None:
    """Initialise the weights of a new model, in place.

    Xavier-uniform layers and small normal embeddings, as in vision transformers; the head's
    modulations and its output start at zero, as in DiT (arXiv 2212.09748).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    head = model.head
    first, second = (cast(nn.Linear, head.time_embed.mlp[index]) for index in (0, 2))
    embeddings = [
        model.class_emb.weight,
        model.fake_latent,
        model.mask_token,
        model.encoder_pos_embed_learned,
        model.decoder_pos_embed_learned,
        model.diffusion_pos_embed_learned,
        first.weight,
        second.weight,
    ]
    for weight in embeddings:
        nn.init.normal_(weight, std=0.02)
    residual = cast(list[ResidualBlock], list(head.res_blocks))
    zero = [head.final_layer.linear]
    for block in (*residual, head.final_layer):
        zero.append(cast(nn.Linear, cast(nn.Sequential, block.adaLN_modulation)[1]))
    for layer in zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Latents [batch, c, h, w] to tokens [batch, L, c * patch * patch]."""
    parts = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class Training:
    """Losses of images in random generation order.

    Tokens are in generation order, [buffer, visible, masked]: attention does not depend on the
    order, so masking is slicing, the encoder processes visible tokens only, and everything after
    the decoder's last keys and values is computed for masked tokens only.
    """

    def __init__(self, model: MAR, latents: Latents) -> None:
        self.mar, self.latents = model, latents
        self.diffusion = DiffusionLoss()

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Losses of the images `rows` [batch] of the data."""
        config = self.mar.config
        tokens = patchify(self.latents.sample(rows), config.patch_size)
        order = torch.rand(tokens.shape[:2]).argsort(1)
        visible = config.tokens - masked_count(config.tokens, LOWEST_MASK_RATIO)
        dropped = torch.rand(len(rows)) < LABEL_DROP
        ordered = in_order(tokens, order)
        with torch.autocast("cpu", torch.bfloat16):
            condition = self.condition(
                ordered[:, :visible], self.latents.labels[rows], order, dropped
            )
            return head_loss(self.mar.head, self.diffusion, ordered[:, visible:], condition)

    def condition(self, known: Tensor, labels: Tensor, order: Tensor, dropped: Tensor) -> Tensor:
        """The head's condition for every masked token, [batch, masked, width].

        Args:
            known: visible tokens, [batch, visible, C].
            labels: [batch].
            order: generation order of each image, [batch, L].
            dropped: images that train the unconditional model, [batch] bool.
        """
        mar = self.mar
        start = torch.where(dropped[:, None], mar.fake_latent, mar.class_emb(labels))
        return decode(mar, encode(mar, start, known, order), order)


def in_order(tokens: Tensor, order: Tensor) -> Tensor:
    """Tokens [batch, L, C] in generation order."""
    return tokens.gather(1, order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def encode(mar: MAR, start: Tensor, known: Tensor, order: Tensor) -> Tensor:
    """The encoder over buffer and visible tokens, [batch, buffer + visible, width].

    Args:
        start: content of the buffer, [batch or 1, width].
        known: visible tokens, [batch, visible, C].
        order: generation order, [batch, L].
    """
    positions, buffer = mar.encoder_pos_embed_learned[0], mar.config.buffer_size
    head = (start.unsqueeze(1) + positions[:buffer]).expand(len(known), -1, -1)
    tokens = mar.z_proj(known) + F.embedding(order[:, : known.shape[1]], positions[buffer:])
    x = mar.z_proj_ln(torch.cat([head, tokens], dim=1))
    for block in blocks(mar.encoder_blocks):
        x = run_block(block, x)
    result: Tensor = mar.encoder_norm(x)
    return result


def decode(mar: MAR, encoded: Tensor, order: Tensor) -> Tensor:
    """The head's condition for every masked token, [batch, masked, width]."""
    buffer, length = mar.config.buffer_size, order.shape[1]
    visible = encoded.shape[1] - buffer
    positions = mar.decoder_pos_embed_learned[0]
    masked = mar.mask_token.expand(len(encoded), length - visible, -1)
    places = F.embedding(order, positions[buffer:])
    places = torch.cat([positions[:buffer].expand(len(encoded), -1, -1), places], dim=1)
    x = torch.cat([mar.decoder_embed(encoded), masked], dim=1) + places
    *first, last = blocks(mar.decoder_blocks)
    for block in first:
        x = run_block(block, x)
    x = mar.decoder_norm(run_block(last, x, buffer + visible))
    return x + F.embedding(order[:, visible:], mar.diffusion_pos_embed_learned[0])


def head_loss(
    head: DiffusionMLP, diffusion: DiffusionLoss, tokens: Tensor, condition: Tensor
) -> dict[str, Tensor]:
    """Losses of clean tokens [batch, masked, C] at random timesteps."""
    x = tokens.flatten(0, 1).repeat(HEAD_TIMESTEPS, 1)
    timestep = torch.randint(diffusion.steps, (len(x),))
    noise = torch.randn_like(x)
    x_t = diffusion.diffuse(x, timestep, noise)
    embedded = head.cond_embed(condition.flatten(0, 1)).repeat(HEAD_TIMESTEPS, 1)
    y = F.silu(head.time_embed(timestep.float()) + embedded)
    hidden = head.input_proj(x_t)
    for block in cast(list[ResidualBlock], list(head.res_blocks)):
        hidden = block.modulated(hidden, *block.adaLN_modulation[1](y).chunk(3, dim=-1))
    final = head.final_layer
    output = final.modulated(hidden, *final.adaLN_modulation[1](y).chunk(2, dim=-1))
    error, bound = diffusion(output.float(), x, x_t, timestep, noise)
    return {"loss": error + bound, "error": error, "bound": bound}


def blocks(modules: nn.ModuleList) -> list[Block]:
    """The modules with their type."""
    return cast(list[Block], list(modules))


def run_block(block: Block, x: Tensor, start: int = 0) -> Tensor:
    """A transformer block, with queries from token `start` onwards: [batch, tokens - start, D]."""
    qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    # The fused attention's backward pass is the slowest part of a step on a CPU; this is faster.
    mixed = attention(query[:, :, start:], key, value)
    x = x[:, start:] + block.attn.proj(mixed).float()
    result: Tensor = x + block.mlp(block.norm2(x))
    return result


def masked_count(tokens: int, lowest: float) -> int:
    """The number of tokens to mask: a normal ratio of mean 1 and deviation 0.25, cut to
    lowest..1."""
    while True:
        ratio = 1 - 0.25 * abs(float(torch.randn(())))
        if ratio >= lowest:
            return math.ceil(tokens * ratio)
