"""Sizes of the FlowAR and xAR transformers, and how they are read from a checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ....errors import DisaError
from ...checkpoints.state_dict import count_blocks, shape_of
from ...layers.flow import GRID, ROTARY_BASE, rotary_frequencies
from .sizes import check_keys, check_sizes

VAE_STRIDE = 16
"""Pixels along a side of a latent of the official models."""
PATCH_SIZE = 1
"""Fixed in both families: a token is one latent."""
GRIDS = (2, 4, 8, 16, 32, 64)
"""Possible sides of latent maps."""
STACKS = ("encoder", "decoder")
HEAD_DIM = 64
"""Channels of an attention head of a flow head, at every width."""
WHERE = "the checkpoint"


@dataclass(frozen=True)
class StackConfig:
    """An encoder and a decoder stack, under the names of the official training options.

    Attributes:
        grid: tokens along a side of the image.
    """

    encoder_embed_dim: int
    encoder_depth: int
    encoder_num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    vae_embed_dim: int
    class_num: int
    grid: int = field(default=GRID, kw_only=True)
    vae_stride: int = field(default=VAE_STRIDE, kw_only=True)

    def __post_init__(self) -> None:
        check_sizes(type(self), vars(self), "the configuration's")
        for stack in STACKS:
            width, heads = getattr(self, f"{stack}_embed_dim"), getattr(self, f"{stack}_num_heads")
            if width % (4 * heads):
                raise DisaError(
                    f"a width of {width} is not a multiple of four channels for each of {heads} "
                    f"heads, as rotary positions need: set the correct {stack}_num_heads "
                    "with --config"
                )
        if self.encoder_embed_dim != self.decoder_embed_dim:
            raise DisaError(
                f"encoder width {self.encoder_embed_dim} and decoder width "
                f"{self.decoder_embed_dim} differ, but both are modulated by the same condition: "
                "fix the configuration"
            )

    @property
    def img_size(self) -> int:
        """Pixels along a side of the image."""
        return self.grid * self.vae_stride

    @property
    def width(self) -> int:
        """Width of both stacks."""
        return self.encoder_embed_dim

    @property
    def modulations(self) -> int:
        """Number of modulation values of all blocks for one row."""
        return 6 * self.width * (self.encoder_depth + self.decoder_depth)

    @property
    def heads(self) -> dict[str, int]:
        """Key prefix of each stack of blocks -> its attention heads."""
        return {f"{stack}_blocks.": getattr(self, f"{stack}_num_heads") for stack in STACKS}


def stacks_in_tensors(
    state: Mapping[str, Tensor], positions: Callable[[int], int]
) -> dict[str, int]:
    """The options of `StackConfig` that follow from the tensors.

    Args:
        positions: the number of token positions for the side of a grid.

    Raises:
        DisaError: a tensor is missing, or no grid has this number of positions.
    """
    _check_rotary(state)
    found = shape_of(state, "encoder_pos_embed_learned", 3, WHERE)[1]
    grid = next((grid for grid in GRIDS if positions(grid) == found), None)
    if grid is None:
        known = ", ".join(f"{positions(grid)} ({grid}x{grid} latents)" for grid in GRIDS)
        raise DisaError(
            f"{WHERE}: it has {found} token positions, but models of this family have one of "
            f"{known}"
        )
    width, channels = shape_of(state, "z_proj.weight", 2, WHERE)
    from_tensors = {
        "encoder_embed_dim": width,
        "decoder_embed_dim": shape_of(state, "decoder_embed.weight", 2, WHERE)[0],
        "vae_embed_dim": channels,
        "grid": grid,
        "class_num": shape_of(state, "class_emb.weight", 2, WHERE)[0] - 1,
    }
    for stack in STACKS:
        from_tensors[f"{stack}_depth"] = count_blocks(state, f"{stack}_blocks", WHERE)
        heads = _heads_in_tensors(state, f"{stack}_blocks")
        if heads is not None:
            from_tensors[f"{stack}_num_heads"] = heads
    return from_tensors


def merge_sizes(
    from_tensors: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    args: Mapping[str, Any] | None,
    known: set[str],
    official_heads: Mapping[int, int],
) -> dict[str, Any]:
    """Sizes from the tensors, the configuration, the training options and the official models.

    Raises:
        DisaError: the configuration contradicts the tensors or the families' fixed geometry,
            or the number of attention heads is not known.
    """
    check_keys(config or {}, known | {"patch_size", "img_size"}, "the configuration")
    given = {key: value for key, value in (config or {}).items() if value is not None}
    sizes = {
        key: value
        for key, value in {**(args or {}), **given, **from_tensors}.items()
        if key in known
    }
    img_size = from_tensors["grid"] * sizes.get("vae_stride", VAE_STRIDE)
    for key, value in {"patch_size": PATCH_SIZE, "img_size": img_size, **from_tensors}.items():
        if key in given and given[key] != value:
            source = (
                "the checkpoint's tensors have"
                if key in from_tensors
                else "this model only supports"
            )
            raise DisaError(f"the configuration has {key} {given[key]}, but {source} {value}")
    for stack in STACKS:
        option, width = f"{stack}_num_heads", sizes[f"{stack}_embed_dim"]
        if option not in sizes:
            if width not in official_heads:
                raise DisaError(
                    f"a width of {width} is not an official size, and this checkpoint has "
                    f"no table that shows the attention heads: set {option} in a JSON file "
                    "with --config"
                )
            sizes[option] = official_heads[width]
    return sizes


def official_stacks(width: int, depth: int, heads: int) -> dict[str, int]:
    """`StackConfig` of an official ImageNet model, `depth` blocks in each stack."""
    sizes = {"vae_embed_dim": 16, "class_num": 1000}
    for stack in STACKS:
        sizes |= {
            f"{stack}_embed_dim": width,
            f"{stack}_depth": depth,
            f"{stack}_num_heads": heads,
        }
    return sizes


def unused_at_inference(key: str) -> bool:
    """Whether a tensor is a table that follows from the sizes, not a weight."""
    return key == "mask" or ".rope." in key


def _heads_in_tensors(state: Mapping[str, Tensor], stack: str) -> int | None:
    """Attention heads: a head has four channels for every rotary frequency."""
    frequencies = state.get(f"{stack}.0.attn.rope.freqs")
    if frequencies is None or frequencies.numel() == 0:
        return None
    width, _ = shape_of(state, f"{stack}.0.attn.proj.weight", 2, WHERE)
    heads, rest = divmod(width, 4 * frequencies.numel())
    return heads if heads and not rest else None


def _check_rotary(state: Mapping[str, Tensor]) -> None:
    """Check that all rotary tables are those that the modules here compute."""
    widths: dict[str, set[int]] = {}
    for key, stored in state.items():
        if not key.endswith("rope.freqs"):
            continue
        width = 4 * stored.numel()
        if not stored.float().flatten().allclose(rotary_frequencies(width), rtol=1e-4):
            raise DisaError(
                f"{WHERE}: the rotary frequencies in {key} are not those of base "
                f"{ROTARY_BASE:g} that FlowAR and xAR use: this is another model"
            )
        widths.setdefault(key.partition(".")[0], set()).add(width)
    for part, found in widths.items():
        if len(found) > 1 or (part == "flownet" and found != {HEAD_DIM}):
            raise DisaError(
                f"{WHERE}: the rotary tables in {part} are for attention heads of "
                f"{' and '.join(map(str, sorted(found)))} channels, but all layers of a stack "
                f"have the same heads, and those of a flow head {HEAD_DIM} channels: this is "
                "another model"
            )


def released(state: Mapping[str, Tensor], config: StackConfig) -> object:
    """The state dict, with the rotary frequencies that every attention layer has in a checkpoint.

    They show the number of attention heads.
    """
    tables = {}
    for key in state:
        before, found, _ = key.rpartition("attn.proj.weight")
        if found:
            heads = next((n for stack, n in config.heads.items() if key.startswith(stack)), None)
            width = config.width // heads if heads else HEAD_DIM
            tables[f"{before}attn.rope.freqs"] = rotary_frequencies(width)
    return {**state, **tables}
