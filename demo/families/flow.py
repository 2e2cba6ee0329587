"""The training code that FlowAR and xAR share: masked blocks, velocity loss, checkpoint layout.

A sample moves on a straight line from noise at time 1 to data at time 0; its velocity is the
noise minus the data (flow matching, arXiv 2210.02747).
"""

import argparse
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from disa.exporter.families.configs.flow import HEAD_DIM, StackConfig, released
from disa.exporter.families.configs.flowar import FlowARConfig
from disa.exporter.layers.flow import Block
from disa.exporter.layers.flow_stacks import Stacks
from disa.exporter.layers.transformer import TimestepEmbedding

from ..data.fashion_mnist import CLASS_NAMES

LABEL_DROP = 0.1
TIMESTEPS = 1000.0


def initialise(model: nn.Module, zero: Iterable[nn.Linear]) -> None:
    """Initialise the weights of a new model, in place.

    Xavier-uniform layers and small normal embeddings; modulations and outputs (`zero`) start
    at zero, as in DiT (arXiv 2212.09748).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, TimestepEmbedding):
            for layer in (module.mlp[0], module.mlp[2]):
                nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed_learned"):
            nn.init.normal_(parameter, std=0.02)
    for layer in zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def stack_modulations(model: Stacks) -> list[nn.Linear]:
    """The layers that modulate the blocks of both stacks."""
    both = [*blocks(model.encoder_blocks), *blocks(model.decoder_blocks)]
    return [modulation_of(block) for block in both]


def modulation_of(block: Block) -> nn.Linear:
    """The layer that modulates a block, behind its SiLU where the block has one."""
    layer = block.ada_lin[1] if isinstance(block.ada_lin, nn.Sequential) else block.ada_lin
    return cast(nn.Linear, layer)


def blocks(modules: nn.ModuleList) -> list[Block]:
    """The modules with their type."""
    return cast(list[Block], list(modules))


def run_block(block: Block, x: Tensor, modulation: Tensor, rotary: Tensor, mask: Tensor) -> Tensor:
    """Run a transformer block on all tokens at once, with an attention mask.

    Args:
        x: [batch, tokens, width].
        modulation: [batch, groups, 6 * width]; groups of equally many tokens share one.
        rotary: [2, tokens, d / 2].
        mask: added to the attention scores, [tokens, tokens].
    """
    groups = modulation.shape[1]
    gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation.unsqueeze(2).chunk(6, dim=-1)

    def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return (x.unflatten(1, (groups, -1)) * (1 + scale) + shift).flatten(1, 2)

    def gated(x: Tensor, gamma: Tensor) -> Tensor:
        return (x.unflatten(1, (groups, -1)) * gamma).flatten(1, 2)

    query, key, value = block.attn.project(modulated(block.norm1(x), scale1, shift1), rotary)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = (scores.float() + mask).softmax(-1).to(value.dtype)
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    x = x + gated(block.attn.proj(mixed).float(), gamma1)
    return x + gated(block.mlp(modulated(block.norm2(x), scale2, shift2)), gamma2)


def drop_labels(labels: Tensor, no_class: int) -> Tensor:
    """Replace some of the labels [batch] at random by `no_class`, for guidance."""
    return torch.where(torch.rand(len(labels)) < LABEL_DROP, no_class, labels)


def random_times(*shape: int) -> Tensor:
    """Random times in 0..1 with a logit-normal distribution (arXiv 2403.03206)."""
    return torch.randn(*shape).sigmoid()


def on_the_line(x: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The noisy sample at `time` on the straight line from `x` to the noise."""
    return (1 - time) * x + time * noise


def velocity_error(velocity: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity of each token, [batch, tokens]."""
    return F.mse_loss(velocity, noise - x, reduction="none").mean(-1)


def checkpoint(config: StackConfig, weights: dict[str, Tensor]) -> dict[str, Any]:
    """The content of a file in the layout of the official training checkpoints.

    In it neighbouring channels are rotated together: the reverse of `rearrange_rotary` in
    `disa.exporter.layers.flow`. The exporter infers the number of heads from the frequency tables.
    """
    result = dict(weights)
    for key, tensor in weights.items():
        count = next((n for stack, n in config.heads.items() if key.startswith(stack)), None)
        if key.startswith("flownet.") and isinstance(config, FlowARConfig):
            count = config.diffloss_w // HEAD_DIM
        if count is None or not key.endswith(("attn.qkv.weight", "attn.qkv.bias")):
            continue
        *turned, value = tensor.chunk(3)
        turned = [
            part.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2) for part in turned
        ]
        result[key] = torch.cat([*turned, value])
    result = cast(dict[str, Tensor], released(result, config))
    args = argparse.Namespace(
        img_size=config.img_size, vae_stride=config.vae_stride, class_names=list(CLASS_NAMES)
    )
    return {"model": result, "model_ema": result, "optimizer": {}, "epoch": 0, "args": args}


def hidden_from(sees: Tensor) -> Tensor:
    """An attention mask to add to the scores: -inf where `sees` is false."""
    return torch.where(sees, 0.0, -torch.inf)
