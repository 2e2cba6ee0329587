"""FlowAR's head: a small transformer over the tokens of one scale that predicts velocities.

`FlowHead` carries the keys of the official checkpoints; `HeadStep` and `CrossHeadStep` are
the same network as one whole Euler step, arranged for a graph.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from .flow_layers import (
    Block,
    Cached,
    ExactTimestepEmbedding,
    GatedMLP,
    Modulation,
    RMSNorm,
    RotaryAttention,
    rotate,
)
from .flowar_config import HEAD_DIM
from .layers import Linear, TimestepEmbedding, attention, for_each, guided


class CrossAttention(nn.Module):
    """Attention of the noisy tokens to the condition; both carry rotary positions."""

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
    """What the blocks attend to; it does not change while a scale is denoised."""

    def __init__(self, head: FlowHead) -> None:
        super().__init__()
        self.norms = nn.ModuleList(block.norm2_2 for block in head.res_blocks)
        self.attentions = nn.ModuleList(block.crossattn for block in head.res_blocks)

    def forward(self, z: Tensor, rotary: Tensor) -> Tensor:
        """`z` [rows, tokens, condition_width] -> [2 * depth, rows, heads, tokens, d].

        Keys and values come in turn, block after block.
        """
        kept: list[Tensor] = []
        for norm, crossed in zip(self.norms, self.attentions, strict=True):
            kept += crossed.keys_values(norm(z), rotary)
        return torch.stack(kept).float()


class TimestepTables(nn.Module):
    """What the head's blocks need of a timestep, for a whole grid of them at once."""

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


class HeadStep(nn.Module):
    """One Euler step of a head without cross-attention: network, guidance and update.

    The state stays fp32: an Euler sum of at most some hundred terms loses less in it than
    the fp32 network does in one call.
    """

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
        coefficients: Tensor,
        guidance_scale: Tensor,
    ) -> Tensor:
        """`x` at the step's time to `x` at the next.

        Args:
            x: [tokens, batch, C].
            condition: embedded condition [guidance, batch, tokens, W]; guidance is
                (conditional, unconditional), or one entry for no guidance.
            positions: places of the tokens among those of all scales, [tokens].
            step: [batch], row of the two tables below that each image is at.
            embedding: embedded timesteps [steps, W].
            coefficients: factors of x and of the velocity, [steps, 2].
            guidance_scale: [batch].
        """
        activated = F.silu(condition + embedding.index_select(0, step).unsqueeze(1)).flatten(0, 1)
        hidden = for_each(self.input_proj(x.transpose(0, 1)), condition.shape[0])
        rotary = self.rotary.index_select(1, positions)
        for block in self.res_blocks:
            hidden, _, _ = block(hidden, block.ada_lin(activated), rotary, None)
        velocity = self.final_layer(hidden, activated)
        return update(x, velocity, coefficients.index_select(0, step), guidance_scale)


class CrossHeadStep(nn.Module):
    """One Euler step of a head with cross-attention."""

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
        coefficients: Tensor,
        guidance_scale: Tensor,
    ) -> Tensor:
        """`x` at the step's time to `x` at the next.

        Args as those of `HeadStep`, and:
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
        velocity = self.final_layer(hidden, activated)
        return update(x, velocity, coefficients.index_select(0, step), guidance_scale)


def update(x: Tensor, velocity: Tensor, coefficients: Tensor, guidance_scale: Tensor) -> Tensor:
    """Guidance and the sampler's linear step.

    Args:
        x: [tokens, batch, C].
        velocity: [guidance * batch, tokens, C].
        coefficients: factors of x and velocity for each image, [batch, 2].
        guidance_scale: [batch].
    """
    batch = x.shape[1]
    velocity = velocity.unflatten(0, (-1, batch)).transpose(1, 2)
    of_x, of_velocity = coefficients.split(1, dim=-1)
    return of_x * x + of_velocity * guided(velocity, guidance_scale)
