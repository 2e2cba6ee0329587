"""Sizes of MAR models: the official ones, and those of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ....errors import DisaError
from ...checkpoints.state_dict import count_blocks, shape_of
from .sizes import check_keys, check_sizes

FAMILY = "mar"
WHERE = "the checkpoint"


@dataclass(frozen=True)
class Size:
    """An official model: `depth` blocks in the encoder and as many in the decoder."""

    width: int
    depth: int
    heads: int
    diffloss_d: int
    diffloss_w: int
    guidance_scale: float


SIZES = {
    "mar_b": Size(768, 12, 12, diffloss_d=6, diffloss_w=1024, guidance_scale=2.9),
    "mar_l": Size(1024, 16, 16, diffloss_d=8, diffloss_w=1280, guidance_scale=3.0),
    "mar_h": Size(1280, 20, 16, diffloss_d=12, diffloss_w=1536, guidance_scale=3.3),
}


LEAST_TOKENS = 9
"""With fewer, the sizes at which the backbone is traced would not fit into an image."""


@dataclass(frozen=True)
class MARConfig:
    """Sizes of a MAR model, under the names of the official training options."""

    img_size: int
    vae_stride: int
    patch_size: int
    vae_embed_dim: int
    class_num: int
    buffer_size: int
    encoder_embed_dim: int
    encoder_depth: int
    encoder_num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    diffloss_d: int
    diffloss_w: int
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_sizes(type(self), vars(self), "the configuration's")
        if self.img_size % (self.vae_stride * self.patch_size):
            raise DisaError(
                f"img_size {self.img_size} is not a multiple of vae_stride * patch_size "
                f"({self.vae_stride} * {self.patch_size}): fix the configuration"
            )
        for side in ("encoder", "decoder"):
            width, heads = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_num_heads")
            if width % heads:
                raise DisaError(
                    f"{heads} {side} heads do not divide its width {width}: set {side}_num_heads"
                )

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def tokens(self) -> int:
        """Tokens of an image, L."""
        return self.grid**2

    @property
    def channels(self) -> int:
        """Channels of a token, C."""
        return self.vae_embed_dim * self.patch_size**2


def recognise(state: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of a MAR model."""
    return {"fake_latent", "mask_token", "diffloss.net.cond_embed.weight"} <= state.keys()


def configure(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
    owner: str = "the configuration",
) -> MARConfig:
    """Determine the sizes of a checkpoint.

    Sizes are read from the tensors if possible; the rest comes from `config`, then from the
    training options `args` of the checkpoint, then from the official models of that width.

    Raises:
        DisaError: a size is missing, `config` contradicts the tensors, or images have too few
            tokens to be generated in parts.
    """
    result = configure_transformer(state, config, args, owner)
    if result.tokens < LEAST_TOKENS:
        raise DisaError(
            f"images of {result.grid}x{result.grid} tokens are too small for a MAR model, which "
            "needs at least 3x3: train it with a smaller patch_size"
        )
    return result


def configure_transformer(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    args: Mapping[str, Any] | None,
    owner: str,
) -> MARConfig:
    """The sizes of a masked transformer, which is also a part of Harmon: see `configure`."""
    known = {field.name for field in fields(MARConfig)}
    check_keys(config or {}, known, owner)
    from_tensors = sizes_in_tensors(state)
    given = {key: value for key, value in (config or {}).items() if value is not None}
    for key, value in from_tensors.items():
        if key in given and given[key] != value:
            raise DisaError(
                f"the configuration has {key} {given[key]}, "
                f"but the checkpoint's tensors have {value}"
            )
    sizes = {**{k: v for k, v in (args or {}).items() if k in known}, **given, **from_tensors}
    sizes = {key: value for key, value in sizes.items() if key in known}
    check_sizes(MARConfig, sizes, "the configuration's")
    for side in ("encoder", "decoder"):
        heads = f"{side}_num_heads"
        if heads not in sizes:
            sizes[heads] = _official_heads(sizes[f"{side}_embed_dim"], heads)
    tokens = state["diffusion_pos_embed_learned"].shape[1]
    channels = state["z_proj.weight"].shape[1]
    _complete_geometry(sizes, channels, round(tokens**0.5))
    result = MARConfig(**sizes)
    if (result.tokens, result.channels) != (tokens, channels):
        raise DisaError(
            f"img_size {result.img_size}, vae_stride {result.vae_stride}, patch_size "
            f"{result.patch_size} and vae_embed_dim {result.vae_embed_dim} mean "
            f"{result.tokens} tokens of {result.channels} channels, but the checkpoint has "
            f"{tokens} of {channels}: set the correct values with --config"
        )
    return result


def sizes_in_tensors(state: Mapping[str, Tensor]) -> dict[str, int | float]:
    """The options that follow from the shapes of the tensors."""
    encoder, _ = shape_of(state, "z_proj.weight", 2, WHERE)
    tokens = shape_of(state, "diffusion_pos_embed_learned", 3, WHERE)[1]
    return {
        "encoder_embed_dim": encoder,
        "decoder_embed_dim": shape_of(state, "decoder_embed.weight", 2, WHERE)[0],
        "encoder_depth": count_blocks(state, "encoder_blocks", WHERE),
        "decoder_depth": count_blocks(state, "decoder_blocks", WHERE),
        "class_num": shape_of(state, "class_emb.weight", 2, WHERE)[0],
        "buffer_size": shape_of(state, "encoder_pos_embed_learned", 3, WHERE)[1] - tokens,
        "diffloss_d": count_blocks(state, "diffloss.net.res_blocks", WHERE),
        "diffloss_w": shape_of(state, "diffloss.net.input_proj.weight", 2, WHERE)[0],
        "mlp_ratio": shape_of(state, "encoder_blocks.0.mlp.fc1.weight", 2, WHERE)[0] / encoder,
    }


def _official_heads(width: int, option: str) -> int:
    for size in SIZES.values():
        if size.width == width:
            return size.heads
    raise DisaError(
        f"a width of {width} is not an official size, and tensors do not show the attention heads: "
        f"set {option} in a JSON file with --config"
    )


def _complete_geometry(sizes: dict[str, Any], channels: int, grid: int) -> None:
    """Fill in missing sizes; official models have 16 latent channels and stride 16."""
    if "patch_size" not in sizes:
        latent = sizes.get("vae_embed_dim", 16)
        patch = round((channels / latent) ** 0.5)
        if latent * patch**2 != channels:
            raise DisaError(
                f"tokens of {channels} channels fit no patch of {latent} latent channels: "
                "set patch_size and vae_embed_dim in a JSON file with --config"
            )
        sizes["patch_size"] = patch
    sizes.setdefault("vae_embed_dim", channels // sizes["patch_size"] ** 2)
    sizes.setdefault("vae_stride", 16)
    sizes.setdefault("img_size", grid * sizes["vae_stride"] * sizes["patch_size"])


def official_config(name: str) -> MARConfig:
    """The sizes of an official ImageNet 256x256 model, such as `mar_b`."""
    size = SIZES[name]
    return MARConfig(
        img_size=256,
        vae_stride=16,
        patch_size=1,
        vae_embed_dim=16,
        class_num=1000,
        buffer_size=64,
        encoder_embed_dim=size.width,
        encoder_depth=size.depth,
        encoder_num_heads=size.heads,
        decoder_embed_dim=size.width,
        decoder_depth=size.depth,
        decoder_num_heads=size.heads,
        diffloss_d=size.diffloss_d,
        diffloss_w=size.diffloss_w,
    )


def mask_dimensions(tokens: int) -> dict[str, list[int]]:
    """Sizes of the dimensions that only families with masked tokens have, for the manifest.

    `visible` are the tokens known before an AR iteration, `predicted` those that it generates.
    """
    return {"visible": [0, tokens // 2, tokens], "predicted": [1, tokens]}
