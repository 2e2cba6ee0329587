"""The KL autoencoder's decoder: latents to pixels (arXiv 2112.10752, its "KL-f16").

Only the decoder is built; the encoder's tensors in a file are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ...errors import DisaError
from ..checkpoints.state_dict import count_blocks, load_strict, shape_of
from .latents import LatentScale

GROUPS = 32
PIXEL_CHANNELS = (1, 3, 4)
GROUP_NORM_EPS = 1e-6


@dataclass(frozen=True)
class KLConfig:
    """Sizes of a decoder.

    Attributes:
        latent_channels: channels of the latents.
        inner_channels: channels after the 1x1 convolution that precedes the decoder.
        channels: width of each resolution, the finest (that of the image) first.
        res_blocks: residual blocks of each resolution.
        out_channels: channels of the image.
        attention: resolutions whose residual blocks are each followed by attention.
        has_inner: whether there is such a convolution before the decoder.
    """

    latent_channels: int
    inner_channels: int
    channels: tuple[int, ...]
    res_blocks: int
    out_channels: int
    attention: tuple[int, ...] = ()
    has_inner: bool = True

    def __post_init__(self) -> None:
        check_pixels(self.out_channels, "the VAE has")
        for width in self.channels:
            if width % GROUPS:
                raise DisaError(f"{width} channels of the VAE do not divide into {GROUPS} groups")

    @property
    def stride(self) -> int:
        """Pixels of the image along one side of a latent."""
        return int(2 ** (len(self.channels) - 1))


def check_pixels(channels: int, owner: str) -> None:
    """Check that pixels with this number of channels can be written as an image.

    Raises:
        DisaError: they cannot.
    """
    if channels not in PIXEL_CHANNELS:
        raise DisaError(
            f"{owner} pixels of {channels} channels, but images have 1 (grey), 3 (RGB) or 4 (RGBA)"
        )


class Conv2d(nn.Conv2d):
    """A same-size convolution with fp32 input and output that computes in its weight's dtype."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).float()


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the number of groups and the epsilon of the official model."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=GROUP_NORM_EPS)


class ResnetBlock(nn.Module):
    """Two normalised convolutions with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = Conv2d(in_channels, out_channels, 3)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = Conv2d(out_channels, out_channels, 3)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        result: Tensor = self.nin_shortcut(x) + inner
        return result


class Attention(nn.Module):
    """Single-head self-attention over all positions of a map.

    Its matmuls stay in fp32: a single head as wide as the map overflows fp16, and compared with
    the convolutions they cost nothing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [batch, channels, h, w] in fp32; the result has the same shape."""
        normed = self.norm(x)
        query, key, value = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        scores = (query * query.shape[1] ** -0.5).transpose(1, 2) @ key
        mixed = (value @ scores.softmax(-1).transpose(1, 2)).unflatten(2, x.shape[2:])
        result: Tensor = x + self.proj_out(mixed)
        return result


class Upsample(nn.Module):
    """Doubles both sides, then applies a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class Middle(nn.Module):
    """The blocks at the resolution of the latents."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return result


class Level(nn.Module):
    """The residual blocks of one resolution, and the upsampling to the next finer one."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, last: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(before, after) for before, after in pairwise(widths))
        self.attn = nn.ModuleList(Attention(out_channels) for _ in range(blocks * attention))
        self.upsample: nn.Module = nn.Identity() if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        result: Tensor = self.upsample(x)
        return result


class Decoder(nn.Module):
    """Decodes the coarsest map to the image; levels are numbered from the finest."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = Conv2d(config.inner_channels, widths[-1], 3)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(
                widths[min(n + 1, len(widths) - 1)],
                width,
                config.res_blocks,
                attention=n in config.attention,
                last=n == 0,
            )
            for n, width in enumerate(widths)
        )
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = Conv2d(widths[0], config.out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        result: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return result


class KLDecoder(nn.Module):
    """Decodes the token model's latents to pixels. Keys as in the official file."""

    def __init__(self, config: KLConfig, latents: LatentScale | None = None) -> None:
        super().__init__()
        self.config = config
        self.latents = latents or LatentScale()
        self.post_quant_conv: nn.Module = nn.Identity()
        if config.has_inner:
            self.post_quant_conv = Conv2d(config.latent_channels, config.inner_channels, 1)
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """`latents` [batch, c, h, w] -> [batch, out, stride * h, stride * w], about [-1, 1]."""
        latents = latents / self.latents.scale
        if self.latents.shift:
            latents = latents + self.latents.shift
        result: Tensor = self.decoder(self.post_quant_conv(latents))
        return result


def recognise(state: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of a KL autoencoder, official or of diffusers."""
    levels = ("decoder.up.0.", "decoder.up_blocks.0.")
    return "decoder.conv_in.weight" in state and any(key.startswith(levels) for key in state)


def configure(state: Mapping[str, Tensor], where: Path | str) -> KLConfig:
    """Determine the sizes from the tensors, under their official names.

    Raises:
        DisaError: not a KL autoencoder, or an unsupported one.
    """
    if not recognise(state):
        raise DisaError(f"{where}: it is not the VAE: {_what_it_is(state)}")
    if any(key.startswith("quantize.") for key in state):
        raise DisaError(f"{where}: it has a codebook (VQ), but a KL autoencoder is needed")
    has_inner = "post_quant_conv.weight" in state
    first = "post_quant_conv.weight" if has_inner else "decoder.conv_in.weight"
    latent = shape_of(state, first, 4, where)[1]
    levels = count_blocks(state, "decoder.up", where)
    return KLConfig(
        latent_channels=latent,
        inner_channels=shape_of(state, "decoder.conv_in.weight", 4, where)[1],
        channels=tuple(
            shape_of(state, f"decoder.up.{n}.block.0.conv1.weight", 4, where)[0]
            for n in range(levels)
        ),
        res_blocks=count_blocks(state, "decoder.up.0.block", where),
        out_channels=shape_of(state, "decoder.conv_out.weight", 4, where)[0],
        attention=tuple(
            n for n in range(levels) if count_blocks(state, f"decoder.up.{n}.attn", where)
        ),
        has_inner=has_inner,
    )


def build(
    state: Mapping[str, Tensor],
    config: KLConfig,
    where: Path | str = "the VAE",
    latents: LatentScale | None = None,
) -> KLDecoder:
    """Build the decoder with the weights of `state`, in fp32.

    Raises:
        DisaError: tensors are missing, do not fit, or are not expected.
    """
    with torch.device("meta"):
        module = KLDecoder(config, latents)
    places = module.state_dict().keys()
    extra = [key for key in state if key.startswith("decoder.") and key not in places]
    if extra:
        raise DisaError(
            f"{where}: {len(extra)} tensors of the VAE's decoder do not belong to a KL autoencoder "
            f"({', '.join(extra[:3])}): it is one of another kind"
        )
    load_strict(module, state, where=where)
    return module.eval().requires_grad_(False)


def _what_it_is(state: Mapping[str, Tensor]) -> str:
    if "mask_token" in state or "class_emb.weight" in state:
        return "it is a token model, which goes first on the command line"
    return f"it has no levels of a decoder (decoder.up) but {', '.join(list(state)[:3])}"
