"""Layers that FlowAR and xAR share, with the keys of their official checkpoints.

Residual stream, norms and softmax are fp32; matmuls run in the dtype of the weights.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..vae.decoder import KLDecoder
from .transformer import Linear, TimestepEmbedding, attention

Cached = tuple[Tensor, Tensor]
"""Keys and values of a block's earlier tokens."""

RMS_NORM_EPS = 1e-6
GRID = 16
"""Side of the official models' latent map, over which rotary positions are spread."""
ROTARY_BASE = 10000.0
MODULATIONS = 6
"""Number of vectors that modulate one block: gamma, scale and shift for attention and MLP."""


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, with or without a weight."""

    def __init__(self, width: int, affine: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., width] in fp32; the result has the same shape."""
        x = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + RMS_NORM_EPS)
        return x if self.weight is None else x * self.weight


class GatedMLP(nn.Module):
    """GELU-gated MLP whose hidden width is int(width * 4 * 2/3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = int(width * 4.0 * 2 / 3.0)
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., width] in fp32; the result has the same shape."""
        x = x.to(self.fc2.weight.dtype)
        result: Tensor = self.fc2(F.gelu(self.fc1_g(x)) * self.fc1_x(x)).float()
        return result


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions and optionally cached tokens."""

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor, rotary: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of `x` [rows, tokens, width], each [rows, heads, tokens, d]."""
        qkv = self.qkv(x.to(self.qkv.weight.dtype)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return rotate(query, rotary), rotate(key, rotary), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The projected attention result, [rows, queries, width] in fp32."""
        result: Tensor = self.proj(attention(query, key, value)).float()
        return result


class Block(nn.Module):
    """Self-attention and gated MLP, both modulated (adaptive layer norm with gates).

    Args:
        silu_inside: whether the SiLU before the modulation is in one sequence with it in the
            checkpoint (in backbones it is, in FlowAR's head it is not).
    """

    def __init__(self, width: int, heads: int, bias: bool = True, silu_inside: bool = True) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = RotaryAttention(width, heads, bias)
        self.norm2 = RMSNorm(width)
        self.mlp = GatedMLP(width)
        linear = Linear(width, MODULATIONS * width)
        self.ada_lin = nn.Sequential(nn.SiLU(), linear) if silu_inside else linear

    def forward(
        self, x: Tensor, modulation: Tensor, rotary: Tensor, cache: Cached | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the block.

        Args:
            x: [rows, tokens, width].
            modulation: [rows, tokens or 1, 6 * width].
            rotary: rows of `rotary_table`, [2, tokens, d/2].
            cache: keys and values of earlier tokens, each [rows, heads, past, d].

        Returns:
            The new x, and the keys and values of all tokens so far.
        """
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation.chunk(MODULATIONS, dim=-1)
        query, key, value = self.attn.project(self.norm1(x) * (1 + scale1) + shift1, rotary)
        key, value = append(key, value, cache)
        x = x + gamma1 * self.attn.attend(query, key, value)
        x = x + gamma2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x, key, value

    def keys_values(
        self, x: Tensor, modulation: Tensor, rotary: Tensor, cache: Cached | None
    ) -> tuple[Tensor, Tensor]:
        """Only the keys and values that `forward` returns."""
        _, _, scale, _, shift, _ = modulation.chunk(MODULATIONS, dim=-1)
        _, key, value = self.attn.project(self.norm1(x) * (1 + scale) + shift, rotary)
        return append(key, value, cache)


def append(key: Tensor, value: Tensor, cache: Cached | None) -> tuple[Tensor, Tensor]:
    """Keys and values [rows, heads, tokens, d] after the cached ones."""
    if cache is None:
        return key, value
    return torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)


class Modulation(nn.Module):
    """The modulations of many blocks in one array.

    They depend on a condition that all tokens of a row share, so they are computed before
    the loop that uses them.
    """

    def __init__(self, parts: Sequence[Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, condition: Tensor) -> Tensor:
        """`condition` [..., width] in fp32 -> [..., sum of the parts' outputs] in fp32."""
        activated = F.silu(condition)
        return torch.cat([part(activated) for part in self.parts], dim=-1)


class ExactTimestepEmbedding(nn.Module):
    """A timestep embedding that stays fp32 in a graph of lower precision.

    It runs once for a grid of timesteps, and its error would affect every token.
    """

    def __init__(self, source: TimestepEmbedding) -> None:
        super().__init__()
        first, _, second = source.mlp
        self.weights = nn.ParameterList([first.weight, first.bias, second.weight, second.bias])
        self.register_buffer("frequencies", source.frequencies)

    def forward(self, timestep: Tensor) -> Tensor:
        """`timestep` [steps] -> [steps, width]."""
        angle = timestep[:, None] * self.frequencies
        weight, bias, *second = self.weights
        hidden = F.silu(F.linear(torch.cat([angle.cos(), angle.sin()], dim=-1), weight, bias))
        return F.linear(hidden, *second)


class LatentDecoder(nn.Module):
    """Converts the tokens of an image to latents, and to pixels if there is a decoder.

    Args:
        grid: tokens along a side of the image.
        quadrants: number of blocks of tokens along a side: tokens are ordered block by block,
            row-major, and row-major inside a block; 1 for a plain grid.
    """

    def __init__(self, grid: int, quadrants: int, vae: KLDecoder | None) -> None:
        super().__init__()
        self.grid, self.quadrants, self.vae = grid, quadrants, vae

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """`tokens` [grid * grid, batch, C] -> latents [batch, C, grid, grid] and the image."""
        blocks, side = self.quadrants, self.grid // self.quadrants
        x = tokens.unflatten(0, (blocks, blocks, side, side))
        latents = x.permute(4, 5, 0, 2, 1, 3).flatten(4, 5).flatten(2, 3)
        if self.vae is None:
            return latents
        return latents, self.vae(latents)


def run_cached(
    blocks: nn.ModuleList,
    x: Tensor,
    modulations: Sequence[Tensor],
    rotary: Tensor,
    cache: Tensor,
    cache_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run a stack of blocks over new tokens that also attend to cached ones.

    Args:
        x: [rows, tokens, width], rows = guidance * batch.
        modulations: one [rows, 1, 6 * width] for each block.
        rotary: rows of `rotary_table`, [2, tokens, d/2].
        cache: alternating keys and values, block after block,
            [2 * depth, guidance, batch, heads, past, d].
        cache_only: the result x is not needed, so the last block ends with keys and values.

    Returns:
        The new x, and the cache with past + tokens.
    """
    guidance, batch = cache.shape[1], cache.shape[2]
    past = cache.to(blocks[0].attn.qkv.weight.dtype).flatten(1, 2).unbind(0)
    extended: list[Tensor] = []
    for index, block in enumerate(blocks):
        cached = past[2 * index], past[2 * index + 1]
        if cache_only and index == len(blocks) - 1:
            key, value = block.keys_values(x, modulations[index], rotary, cached)
        else:
            x, key, value = block(x, modulations[index], rotary, cached)
        extended += [key, value]
    return x, torch.stack(extended).unflatten(1, (guidance, batch)).float()


def rotary_frequencies(head_dim: int) -> Tensor:
    """Rotations for each position, [head_dim / 4]; half of the pairs rotate by row, half by
    column."""
    half = head_dim // 2
    return 1.0 / ROTARY_BASE ** (torch.arange(0, half, 2).float() / half)


def rotary_table(side: int, head_dim: int, grid: int = GRID) -> Tensor:
    """Cosines and sines for a square grid of tokens, [2, side * side, head_dim / 2].

    A grid of any side is stretched over the `grid` positions of the latent map.
    """
    position = torch.arange(side) / side * grid
    angle = position[:, None] * rotary_frequencies(head_dim)
    row = angle[:, None].expand(side, side, -1)
    column = angle[None].expand(side, side, -1)
    both = torch.cat([row, column], dim=-1).flatten(0, 1)
    return torch.stack([both.cos(), both.sin()])


def rotate(x: Tensor, rotary: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + d/2) of `x` [..., tokens, d] by `rotary` [2, tokens,
    d/2]."""
    cos, sin = rotary.to(x.dtype).unbind(0)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder a query or key projection for `rotate`.

    Official weights rotate neighbouring channels; here a pair is half a head apart, which
    needs two contiguous slices instead of four strided ones. Queries and keys are reordered
    in the same way, so their product does not change.
    """
    pairs = weight.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)


def rearrange_rotary(state: Mapping[str, Tensor], heads: Mapping[str, int]) -> dict[str, Tensor]:
    """The tensors of a checkpoint with every rotated projection reordered for `rotate`.

    Args:
        heads: key prefix of a stack of blocks -> its number of attention heads.
    """
    rotated = {"qkv": (True, True, False), "kv": (True, False), "q": (True,)}
    result = dict(state)
    for key, tensor in state.items():
        names = key.split(".")
        count = next((n for prefix, n in heads.items() if key.startswith(prefix)), None)
        if count is None or len(names) < 2 or names[-2] not in rotated:
            continue
        turned = rotated[names[-2]]
        rows = 2 * count * len(turned)
        # A tensor of another shape is reported when the weights are loaded.
        if not tensor.ndim or tensor.shape[0] % rows or not tensor.shape[0]:
            continue
        parts = zip(tensor.chunk(len(turned)), turned, strict=True)
        result[key] = torch.cat([halves(part, count) if turn else part for part, turn in parts])
    return result
