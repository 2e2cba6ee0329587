"""The KL autoencoder's decoder: latents to pixels (arXiv 2112.10752, its "KL-f16").

Only the decoder is built; the encoder's tensors in a file are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..errors import DisaError
from .checkpoint import open_checkpoint
from .weights import count_blocks, load_strict, shape_of

# The models are trained on latents times this, which gives them a standard deviation of about 1.
LATENT_SCALE = 0.2325

GROUPS = 32
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
    """

    latent_channels: int
    inner_channels: int
    channels: tuple[int, ...]
    res_blocks: int
    out_channels: int

    def __post_init__(self) -> None:
        for width in self.channels:
            if width % GROUPS:
                raise DisaError(f"{width} channels of the VAE do not divide into {GROUPS} groups")

    @property
    def stride(self) -> int:
        """Pixels of the image along one side of a latent."""
        return int(2 ** (len(self.channels) - 1))


class Conv2d(nn.Conv2d):
    """A same-size convolution that takes and gives fp32, and multiplies in its weight's dtype."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).float()


class GroupNorm(nn.GroupNorm):
    """GroupNorm with the groups and the epsilon of the official model."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, eps=GROUP_NORM_EPS)


class ResnetBlock(nn.Module):
    """Two normalised convolutions beside a shortcut."""

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

    Its products stay in fp32: a single head as wide as the map overflows fp16, and next to
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
        """`x` [batch, channels, h, w] in fp32, result alike."""
        normed = self.norm(x)
        query, key, value = (layer(normed).flatten(2) for layer in (self.q, self.k, self.v))
        scores = (query * query.shape[1] ** -0.5).transpose(1, 2) @ key
        mixed = (value @ scores.softmax(-1).transpose(1, 2)).unflatten(2, x.shape[2:])
        result: Tensor = x + self.proj_out(mixed)
        return result


class Upsample(nn.Module):
    """Every pixel becomes four, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class Middle(nn.Module):
    """What happens at the resolution of the latents."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return result


class Level(nn.Module):
    """The residual blocks of one resolution, and the way up to the next finer one."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(before, after) for before, after in pairwise(widths))
        self.upsample: nn.Module = nn.Identity() if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        result: Tensor = self.upsample(x)
        return result


class Decoder(nn.Module):
    """From the coarsest map to the image; levels are numbered from the finest."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = config.channels
        self.conv_in = Conv2d(config.inner_channels, widths[-1], 3)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(widths[min(n + 1, len(widths) - 1)], width, config.res_blocks, last=n == 0)
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
    """Latents as the token model makes them, to pixels. Keys as in the official file."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        self.config = config
        self.post_quant_conv = Conv2d(config.latent_channels, config.inner_channels, 1)
        self.decoder = Decoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """`latents` [batch, c, h, w] -> [batch, out, stride * h, stride * w], about [-1, 1]."""
        result: Tensor = self.decoder(self.post_quant_conv(latents / LATENT_SCALE))
        return result


def recognise(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a KL autoencoder in the official layout."""
    return {"post_quant_conv.weight", "decoder.conv_in.weight"} <= state.keys()


def configure(state: Mapping[str, Tensor], where: Path | str) -> KLConfig:
    """The sizes that the tensors tell.

    Raises:
        DisaError: not a KL autoencoder, or one of another kind.
    """
    if not recognise(state):
        raise DisaError(f"{where}: it is not the VAE: {_what_it_is(state)}")
    if attention := [key for key in state if key.startswith("decoder.up.") and ".attn." in key]:
        raise DisaError(
            f"{where}: the VAE has attention outside its middle block ({attention[0]}), "
            "which the models' KL autoencoder does not have"
        )
    inner, latent = shape_of(state, "post_quant_conv.weight", 4, where)[:2]
    levels = count_blocks(state, "decoder.up", where)
    if not levels:
        raise DisaError(f"{where}: the VAE's decoder has no levels (decoder.up): it is incomplete")
    return KLConfig(
        latent_channels=latent,
        inner_channels=inner,
        channels=tuple(
            shape_of(state, f"decoder.up.{n}.block.0.conv1.weight", 4, where)[0]
            for n in range(levels)
        ),
        res_blocks=count_blocks(state, "decoder.up.0.block", where),
        out_channels=shape_of(state, "decoder.conv_out.weight", 4, where)[0],
    )


def build(
    state: Mapping[str, Tensor], config: KLConfig, where: Path | str = "the VAE"
) -> KLDecoder:
    """The decoder with the weights of `state`, in fp32."""
    with torch.device("meta"):
        module = KLDecoder(config)
    load_strict(module, state, where=where)
    return module.eval().requires_grad_(False)


def open_vae(
    path: str | PathLike[str],
    *,
    latent_channels: int,
    stride: int,
) -> KLDecoder:
    """The decoder in a file, for a model whose latents have these channels and this stride.

    Raises:
        DisaError: not a VAE, or one that does not fit the model.
    """
    path = Path(path)
    state = open_checkpoint(path).state
    config = configure(state, path)
    if config.latent_channels != latent_channels:
        raise DisaError(
            f"{path}: the VAE has {config.latent_channels} latent channels and the model "
            f"{latent_channels}: give the VAE that the model was trained with"
        )
    if config.stride != stride:
        raise DisaError(
            f"{path}: the VAE makes {config.stride} pixels of a latent and the model expects "
            f"{stride}: give the VAE that the model was trained with, or set vae_stride"
        )
    return build(state, config, path)


def _what_it_is(state: Mapping[str, Tensor]) -> str:
    if any(key.startswith("decoder.up_blocks.") for key in state):
        return "it has the layout of diffusers, and the official kl16.ckpt is needed"
    if "mask_token" in state or "class_emb.weight" in state:
        return "it is a token model, which goes first on the command line"
    return f"it has no post_quant_conv and no decoder but {', '.join(list(state)[:3])}"
