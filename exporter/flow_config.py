"""Sizes of the FlowAR and xAR transformers, and how a checkpoint tells them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import DisaError
from .flow_layers import GRID, ROTARY_BASE, rotary_frequencies
from .sizes import check_sizes
from .weights import count_blocks, shape_of

GEOMETRY = {"img_size": 256, "vae_stride": 16, "patch_size": 1}
"""What both families fix: 16x16 latents, one token each."""
STACKS = ("encoder", "decoder")
WHERE = "the checkpoint"


@dataclass(frozen=True)
class StackConfig:
    """An encoder and a decoder stack, under the names of the official training options."""

    encoder_embed_dim: int
    encoder_depth: int
    encoder_num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    vae_embed_dim: int
    class_num: int

    def __post_init__(self) -> None:
        check_sizes(type(self), vars(self), "the configuration's")
        for stack in STACKS:
            width, heads = getattr(self, f"{stack}_embed_dim"), getattr(self, f"{stack}_num_heads")
            if width % (4 * heads):
                raise DisaError(
                    f"a width of {width} is no multiple of four channels for each of {heads} "
                    f"heads, as rotary positions need: give the right {stack}_num_heads "
                    "with --config"
                )
        if self.encoder_embed_dim != self.decoder_embed_dim:
            raise DisaError(
                f"encoder width {self.encoder_embed_dim} and decoder width "
                f"{self.decoder_embed_dim} differ, but both are modulated by the same condition: "
                "mend the configuration"
            )

    @property
    def width(self) -> int:
        """Width of both stacks."""
        return self.encoder_embed_dim

    @property
    def modulations(self) -> int:
        """Numbers that modulate all the blocks for one row."""
        return 6 * self.width * (self.encoder_depth + self.decoder_depth)

    @property
    def heads(self) -> dict[str, int]:
        """Key prefix of each stack of blocks -> its attention heads."""
        return {f"{stack}_blocks.": getattr(self, f"{stack}_num_heads") for stack in STACKS}


def stacks_in_tensors(state: Mapping[str, Tensor], tokens: int) -> dict[str, int]:
    """The options of `StackConfig` that the tensors tell.

    Raises:
        DisaError: a tensor is missing, or the model is for another number of `tokens`.
    """
    _check_rotary(state)
    found = shape_of(state, "encoder_pos_embed_learned", 3, WHERE)[1]
    if found != tokens:
        raise DisaError(
            f"{WHERE}: it has {found} token positions; only models of 256x256 pixels with "
            f"{GRID}x{GRID} latents ({tokens} positions) are known"
        )
    width, channels = shape_of(state, "z_proj.weight", 2, WHERE)
    told = {
        "encoder_embed_dim": width,
        "decoder_embed_dim": shape_of(state, "decoder_embed.weight", 2, WHERE)[0],
        "vae_embed_dim": channels,
        "class_num": shape_of(state, "class_emb.weight", 2, WHERE)[0] - 1,
    }
    for stack in STACKS:
        told[f"{stack}_depth"] = count_blocks(state, f"{stack}_blocks", WHERE)
        heads = _heads_in_tensors(state, f"{stack}_blocks")
        if heads is not None:
            told[f"{stack}_num_heads"] = heads
    return told


def merge_sizes(
    told: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    args: Mapping[str, Any] | None,
    known: set[str],
    official_heads: Mapping[int, int],
) -> dict[str, Any]:
    """Sizes from the tensors, the configuration, the training options and the official models.

    Raises:
        DisaError: the configuration contradicts the tensors or the families' fixed geometry,
            or nobody tells the number of attention heads.
    """
    given = {key: value for key, value in (config or {}).items() if value is not None}
    for key, value in {**GEOMETRY, **told}.items():
        if key in given and given[key] != value:
            source = "this family only knows" if key in GEOMETRY else "the checkpoint's tensors say"
            raise DisaError(f"the configuration says {key} {given[key]}, but {source} {value}")
    sizes = {key: value for key, value in {**(args or {}), **given, **told}.items() if key in known}
    for stack in STACKS:
        option, width = f"{stack}_num_heads", sizes[f"{stack}_embed_dim"]
        if option not in sizes:
            if width not in official_heads:
                raise DisaError(
                    f"a width of {width} is none of the official sizes, and this checkpoint has "
                    f"no table that tells the attention heads: give {option} in a JSON file "
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


def is_needless(key: str) -> bool:
    """Whether a checkpoint key holds a table that follows from the sizes, not a weight."""
    return key == "mask" or ".rope." in key


def _heads_in_tensors(state: Mapping[str, Tensor], stack: str) -> int | None:
    """Attention heads: a head has four channels for every rotary frequency."""
    frequencies = state.get(f"{stack}.0.attn.rope.freqs")
    weight = state.get(f"{stack}.0.attn.proj.weight")
    if frequencies is None or weight is None or frequencies.numel() == 0:
        return None
    heads, rest = divmod(weight.shape[0], 4 * frequencies.numel())
    return heads if heads and not rest else None


def _check_rotary(state: Mapping[str, Tensor]) -> None:
    for key, stored in state.items():
        if key.endswith("rope.freqs") and not stored.float().allclose(
            rotary_frequencies(4 * stored.numel()), rtol=1e-4
        ):
            raise DisaError(
                f"{WHERE}: the rotary frequencies in {key} are not those of base "
                f"{ROTARY_BASE:g} that FlowAR and xAR use: this is another model"
            )
