"""FlowAR's head: a small transformer over the tokens of one scale that predicts velocities.

`FlowHead` carries the keys of the official checkpoints; `StepNetwork` and `CrossStepNetwork` are
the same network for a graph, and `head_step` one complete Euler step with it.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..families.configs.flow import HEAD_DIM
from .denoising_step import DenoisingStep, Euler, Network
from .flow import (
    Block,
    Cached,
    ExactTimestepEmbedding,
    GatedMLP,
    Modulation,
    RMSNorm,
    RotaryAttention,
    rotate,
)
from .transformer import Linear, TimestepEmbedding, attention, for_each


class CrossAttention(nn.Module):
    """Attention of the noisy tokens to the condition; both have rotary positions."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(condition_width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def query(self, x: Tensor, rotary: Tensor) -> Tensor:
        """`x` [rows, tokens, width] -> [rows, heads, tokens, d]."""
        query = self.q(x.to(self.q.weight.dtype)).unflatten(-1, (self.heads, -1))
        return rotate(query.transpose(1, 2), rotary)

    def keys_values(self, z: Tensor, rotary: Tensor) -> Cached:
        """`z` [rows, tokens, condition_width] -> keys and values [rows, heads, tokens, d]."""
        both = self.kv(z.to(self.kv.weight.dtype)).unflatten(-1, (2, self.heads, -1))
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)
        return rotate(key, rotary), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The projected attention result, [rows, tokens, width] in fp32."""
        result: Tensor = self.proj(attention(query, key, value)).float()
        return result


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to the condition and gated MLP."""

    def __init__(self, width: int, condition_width: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = RotaryAttention(width, width // HEAD_DIM, bias=False)
        self.norm2_1 = RMSNorm(width, affine=True)
        self.norm2_2 = RMSNorm(condition_width, affine=True)
        self.crossattn = CrossAttention(width, condition_width)
        self.norm3 = RMSNorm(width)
        self.mlp = GatedMLP(width)
        self.ada_lin_attn = Linear(width, 3 * width)
        self.ada_lin_mlp = Linear(width, 3 * width)

    def attend_self(self, x: Tensor, modulation: Tensor, rotary: Tensor) -> Tensor:
        """`x` [rows, tokens, W] after self-attention; `modulation` [rows, 1, 3W]."""
        gamma, scale, shift = modulation.chunk(3, dim=-1)
        projected = self.attn.project(self.norm1(x) * (1 + scale) + shift, rotary)
        result: Tensor = x + gamma * self.attn.attend(*projected)
        return result

    def feed_forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """`x` [rows, tokens, W] after the MLP; `activated` is condition and time after SiLU."""
        gamma, scale, shift = self.ada_lin_mlp(activated).chunk(3, dim=-1)
        result: Tensor = x + gamma * self.mlp(self.norm3(x) * (1 + scale) + shift)
        return result


class FinalLayer(nn.Module):
    """Modulated norm without weights, then the projection to the token's channels."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width)
        self.linear = Linear(width, channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, activated: Tensor) -> Tensor:
        """`x` and `activated` (condition and time after SiLU) [..., width] -> [..., channels]."""
        shift, scale = self.adaLN_modulation[1](activated).chunk(2, dim=-1)
        result: Tensor = self.linear(self.norm_final(x) * (1 + scale) + shift)
        return result


class FlowHead(nn.Module):
    """The head's weights.

    Args:
        channels: channels of a token, C.
        condition_width: width of the backbone.
        width, depth: width and number of blocks.
        cross: whether blocks attend to the condition (large and huge models).
    """

    def __init__(
        self, channels: int, condition_width: int, width: int, depth: int, cross: bool
    ) -> None:
        super().__init__()
        self.cross = cross
        self.time_embed = TimestepEmbedding(width)
        self.cond_embed = Linear(condition_width, width)
        self.input_proj = Linear(channels, width)
        self.res_blocks = nn.ModuleList(
            CrossBlock(width, condition_width)
            if cross
            else Block(width, width // HEAD_DIM, bias=False, silu_inside=False)
            for _ in range(depth)
        )
        self.final_layer = FinalLayer(width, channels)


class ConditionKeys(nn.Module):
    """Keys and values for the blocks' cross-attention, constant while a scale is denoised."""

    def __init__(self, head: FlowHead) -> None:
        super().__init__()
        self.norms = nn.ModuleList(block.norm2_2 for block in head.res_blocks)
        self.attentions = nn.ModuleList(block.crossattn for block in head.res_blocks)

    def forward(self, z: Tensor, rotary: Tensor) -> Tensor:
        """`z` [rows, tokens, condition_width] -> [2 * depth, rows, heads, tokens, d].

        Keys and values alternate, block after block.
        """
        kept: list[Tensor] = []
        for norm, crossed in zip(self.norms, self.attentions, strict=True):
            kept += crossed.keys_values(norm(z), rotary)
        return torch.stack(kept).float()


class TimestepTables(nn.Module):
    """The blocks' inputs that depend on timesteps only, for a whole grid of them."""

    def __init__(self, head: FlowHead) -> None:
        super().__init__()
        self.time_embed, self.cross = ExactTimestepEmbedding(head.time_embed), head.cross
        if self.cross:
            self.modulation = Modulation([block.ada_lin_attn for block in head.res_blocks])

    def forward(self, timestep: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """`timestep` [steps] -> embedding [steps, W]; with cross-attention also the modulation
        of the blocks' self-attention, [steps, depth * 3 * W]."""
        embedding = self.time_embed(timestep)
        return (embedding, self.modulation(embedding)) if self.cross else embedding


class StepNetwork(Network):
    """A head without cross-attention, for the graph of a denoising step."""

    inputs = ("x", "condition", "positions", "step", "embedding")

    def __init__(self, head: FlowHead, rotary: Tensor) -> None:
        super().__init__()
        self.input_proj, self.final_layer = head.input_proj, head.final_layer
        self.res_blocks = head.res_blocks
        self.register_buffer("rotary", rotary)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        positions: Tensor,
        step: Tensor,
        embedding: Tensor,
    ) -> Tensor:
        """The velocity [guidance, tokens, batch, C].

        Args:
            x: [tokens, batch, C].
            condition: embedded condition [guidance, batch, tokens, W]; guidance is
                (conditional, unconditional), or one entry for no guidance.
                positions: positions of the tokens in the sequence of all scales, [tokens].
                step: [batch], row of each image in `embedding`.
            embedding: embedded timesteps [steps, W].
        """
        activated = F.silu(condition + embedding.index_select(0, step).unsqueeze(1)).flatten(0, 1)
        hidden = for_each(self.input_proj(x.transpose(0, 1)), condition.shape[0])
        rotary = self.rotary.index_select(1, positions)
        for block in self.res_blocks:
            hidden, _, _ = block(hidden, block.ada_lin(activated), rotary, None)
        return by_guidance(self.final_layer(hidden, activated), x.shape[1])


class CrossStepNetwork(Network):
    """A head with cross-attention, for the graph of a denoising step."""

    inputs = ("x", "condition", "keys_values", "positions", "step", "embedding", "modulation")

    def __init__(self, head: FlowHead, rotary: Tensor) -> None:
        super().__init__()
        self.input_proj, self.final_layer = head.input_proj, head.final_layer
        self.res_blocks = head.res_blocks
        self.register_buffer("rotary", rotary)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        keys_values: Tensor,
        positions: Tensor,
        step: Tensor,
        embedding: Tensor,
        modulation: Tensor,
    ) -> Tensor:
        """The velocity [guidance, tokens, batch, C].

        Args as those of `StepNetwork`, and:
            keys_values: keys and values of the condition for every block,
                [guidance, 2 * depth, batch, heads, tokens, d].
            modulation: of every block's self-attention, [steps, depth * 3 * W].
        """
        guidance, width = condition.shape[0], condition.shape[-1]
        activated = F.silu(condition + embedding.index_select(0, step).unsqueeze(1)).flatten(0, 1)
        hidden = self.input_proj(x.transpose(0, 1))
        rotary = self.rotary.index_select(1, positions)
        modulations = modulation.index_select(0, step).unsqueeze(1).split(3 * width, dim=-1)
        dtype = self.res_blocks[0].mlp.fc2.weight.dtype
        kept = [part.flatten(0, 1) for part in keys_values.to(dtype).unbind(1)]
        for index, block in enumerate(self.res_blocks):
            first = index == 0
            parts = modulations[index] if first else for_each(modulations[index], guidance)
            hidden = block.attend_self(hidden, parts, rotary)
            query = block.crossattn.query(block.norm2_1(hidden), rotary)
            if first:  # so far the guidance halves are equal
                hidden, query = for_each(hidden, guidance), for_each(query, guidance)
            hidden = hidden + block.crossattn.attend(query, *kept[2 * index : 2 * index + 2])
            hidden = block.feed_forward(hidden, activated)
        return by_guidance(self.final_layer(hidden, activated), x.shape[1])


def head_step(head: FlowHead, rotary: Tensor) -> DenoisingStep:
    """One denoising step of the head."""
    network = CrossStepNetwork if head.cross else StepNetwork
    return DenoisingStep(network(head, rotary), Euler())


def by_guidance(velocity: Tensor, batch: int) -> Tensor:
    """[guidance * batch, tokens, C] -> [guidance, tokens, batch, C]."""
    return velocity.unflatten(0, (-1, batch)).transpose(1, 2)
