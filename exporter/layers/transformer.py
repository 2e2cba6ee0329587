"""Transformer layers shared by the families, with the keys of a timm vision transformer."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-6
MASKED = -1e9
"""Added to the score of a masked key; far below any real score."""


class Linear(nn.Linear):
    """A linear layer with fp32 input and output that multiplies in the dtype of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).float()


class LayerNorm(nn.LayerNorm):
    """LayerNorm with the epsilon of the official models (1e-6, not PyTorch's 1e-5)."""

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__(width, eps=LAYER_NORM_EPS, elementwise_affine=affine)


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, softmax in fp32.

    Shapes: query `[batch, heads, queries, head_dim]`, key and value
    `[batch, heads, keys, head_dim]`, result `[batch, queries, heads * head_dim]`.
    The query is scaled before the product, so that fp16 scores do not overflow.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = scores.float().softmax(-1).to(value.dtype)
    return (weights @ value).transpose(1, 2).flatten(2)


def additive(seen: Tensor) -> Tensor:
    """A boolean mask as a term of attention scores: 0 for visible keys, otherwise `MASKED`."""
    return torch.where(seen, 0.0, MASKED)


def for_each(x: Tensor, guidance: int) -> Tensor:
    """[batch, ...] repeated for every guidance half: [guidance * batch, ...]."""
    return x.expand(guidance, *x.shape).flatten(0, 1)


def guided(halves: Tensor, scale: Tensor) -> Tensor:
    """Classifier-free guidance.

    Args:
        halves: predictions [guidance, ..., C]; guidance is (conditional, unconditional), or one
            entry for no guidance.
            scale: factor of the difference between the two predictions, for the axis before C.
    """
    unconditional = halves[-1]
    return unconditional + scale.unsqueeze(-1) * (halves[0] - unconditional)


class Attention(nn.Module):
    """Multi-head self-attention with a joint query-key-value projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of `x` [batch, tokens, width]: [batch, heads, tokens, head_dim]."""
        qkv = self.qkv(x.to(self.qkv.weight.dtype)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def forward(self, x: Tensor) -> Tensor:
        """`x` [batch, tokens, width] in fp32; the result has the same shape."""
        result: Tensor = self.proj(attention(*self.project(x))).float()
        return result


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype)))).float()
        return result


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each added to the residual stream."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [batch, tokens, width] in fp32; the result has the same shape."""
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class QueryBlock(nn.Module):
    """A block whose result is needed for only some of its tokens.

    All tokens give keys and values; queries, projection and MLP are computed for the needed
    tokens. The results are equal to those of `Block`.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        width = block.attn.proj.in_features
        self.heads = block.attn.heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        with torch.no_grad():
            self.query.weight.copy_(block.attn.qkv.weight[:width])
            self.query.bias.copy_(block.attn.qkv.bias[:width])
            self.key_value.weight.copy_(block.attn.qkv.weight[width:])
            self.key_value.bias.copy_(block.attn.qkv.bias[width:])
        self.proj = block.attn.proj
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp

    def forward(self, x: Tensor, start: int, count: int) -> Tensor:
        """`x` [batch, tokens, width] -> [batch, count, width], tokens `start` onwards."""
        wanted = x.narrow(1, start, count)
        dtype = self.query.weight.dtype
        query = self.query(self.norm1(wanted).to(dtype)).unflatten(-1, (self.heads, -1))
        key_value = self.key_value(self.norm1(x).to(dtype)).unflatten(-1, (2, self.heads, -1))
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        wanted = wanted + self.proj(attention(query.transpose(1, 2), key, value)).float()
        result: Tensor = wanted + self.mlp(self.norm2(wanted))
        return result


class TimestepEmbedding(nn.Module):
    """Sinusoidal embedding of a timestep, then Linear-SiLU-Linear (as in GLIDE and DiT).

    256 channels: cosines, then sines, of 128 frequencies falling from 1 to 1/10000.
    """

    CHANNELS = 256
    MAX_PERIOD = 10000.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(self.CHANNELS, width), nn.SiLU(), nn.Linear(width, width)
        )
        half = self.CHANNELS // 2
        # On the CPU even if the model is on the meta device: it is not a weight.
        exponent = torch.arange(half, dtype=torch.float32, device="cpu") / half
        frequencies = (-math.log(self.MAX_PERIOD) * exponent).exp()
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        """`timestep` [steps], possibly fractional, -> [steps, width]."""
        angle = timestep[:, None] * self.frequencies
        result: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))
        return result
