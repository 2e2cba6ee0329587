"""How the demo's MAR is made, and its forward pass for training."""

import math
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.exporter.head import ResidualBlock
from disa.exporter.layers import Block, attention
from disa.exporter.mar import MAR
from disa.exporter.mar_config import Config

from .diffusion import DiffusionLoss
from .fashion_mnist import CLASS_NAMES, SIZE

CONFIG = Config(
    img_size=SIZE,
    vae_stride=1,
    patch_size=4,
    vae_embed_dim=1,
    class_num=len(CLASS_NAMES),
    buffer_size=8,
    encoder_embed_dim=128,
    encoder_depth=4,
    encoder_num_heads=4,
    decoder_embed_dim=128,
    decoder_depth=4,
    decoder_num_heads=4,
    diffloss_d=3,
    diffloss_w=224,
)


def initialise(model: MAR) -> None:
    """Give the weights of a new model their first values, in place.

    Xavier-uniform layers and small normal embeddings, as vision transformers have them; the
    head's modulations and its output start at zero, as in DiT (arXiv 2212.09748).
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


def patchify(images: Tensor, patch: int) -> Tensor:
    """Images [batch, c, h, w] to tokens [batch, L, c * patch * patch]."""
    parts = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class TrainingMAR(nn.Module):
    """Loss of a batch of images in random generation order.

    Tokens stand in generation order, [buffer, visible, masked]: attention does not mind the
    order, so masking is slicing, the encoder sees visible tokens only and everything after the
    decoder's last keys and values runs for masked tokens only.
    """

    def __init__(self, model: MAR) -> None:
        super().__init__()
        self.mar = model
        self.loss = DiffusionLoss()

    def forward(
        self, tokens: Tensor, labels: Tensor, order: Tensor, visible: int, dropped: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Squared error and variational bound of the masked tokens, two scalars.

        Args:
            tokens: [batch, L, C] on the grid, in -1..1.
            labels: [batch].
            order: generation order of each image, [batch, L].
            visible: how many tokens are known, the first of the order.
            dropped: images that train the unconditional model, [batch] bool.
        """
        place = order.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        ordered = tokens.gather(1, place)
        condition = self.condition(ordered[:, :visible], labels, order, dropped).flatten(0, 1)
        return self.head_loss(ordered[:, visible:].flatten(0, 1), condition)

    def condition(self, known: Tensor, labels: Tensor, order: Tensor, dropped: Tensor) -> Tensor:
        """The head's condition for every masked token, [batch, masked, width]."""
        mar, buffer, visible = self.mar, self.mar.config.buffer_size, known.shape[1]
        label = torch.where(dropped[:, None], mar.fake_latent, mar.class_emb(labels))
        positions = mar.encoder_pos_embed_learned[0]
        start = label.unsqueeze(1) + positions[:buffer]
        tokens = mar.z_proj(known) + F.embedding(order[:, :visible], positions[buffer:])
        x = mar.z_proj_ln(torch.cat([start, tokens], dim=1))
        for block in _blocks(mar.encoder_blocks):
            x = run_block(block, x)
        x = mar.decoder_embed(mar.encoder_norm(x))
        positions = mar.decoder_pos_embed_learned[0]
        masked = mar.mask_token.expand(len(x), order.shape[1] - visible, -1)
        places = F.embedding(order, positions[buffer:])
        places = torch.cat([positions[:buffer].expand(len(x), -1, -1), places], dim=1)
        x = torch.cat([x, masked], dim=1) + places
        *blocks, last = _blocks(mar.decoder_blocks)
        for block in blocks:
            x = run_block(block, x)
        x = mar.decoder_norm(run_block(last, x, buffer + visible))
        return x + F.embedding(order[:, visible:], mar.diffusion_pos_embed_learned[0])

    def head_loss(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Both losses of clean tokens [rows, C] at random timesteps."""
        timestep = torch.randint(self.loss.steps, (len(x),), device=x.device)
        noise = torch.randn_like(x)
        x_t = self.loss.diffuse(x, timestep, noise)
        output = self.mar.head(x_t, timestep.float(), condition).float()
        result: tuple[Tensor, Tensor] = self.loss(output, x, x_t, timestep, noise)
        return result


def _blocks(modules: nn.ModuleList) -> list[Block]:
    return cast(list[Block], list(modules))


def run_block(block: Block, x: Tensor, start: int = 0) -> Tensor:
    """A transformer block, with queries from token `start` onwards: [batch, tokens - start, D]."""
    qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    # The fused attention's backward pass is the slowest part of a step on a CPU; this is not.
    mixed = attention(query[:, :, start:], key, value)
    x = x[:, start:] + block.attn.proj(mixed).float()
    result: Tensor = x + block.mlp(block.norm2(x))
    return result


def masked_count(tokens: int, lowest: float, generator: torch.Generator) -> int:
    """How many tokens to mask: a normal ratio of mean 1 and deviation 0.25, cut to lowest..1."""
    while True:
        ratio = 1 - 0.25 * abs(float(torch.randn((), generator=generator)))
        if ratio >= lowest:
            return math.ceil(tokens * ratio)
