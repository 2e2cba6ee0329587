"""Sizes of FlowAR models: the official ones, and those of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ....errors import DisaError
from ...checkpoints.state_dict import count_blocks, shape_of
from .flow import (
    HEAD_DIM,
    WHERE,
    StackConfig,
    merge_sizes,
    official_stacks,
    stacks_in_tensors,
)

FAMILY = "flowar"


@dataclass(frozen=True)
class Size:
    """An official model: `depth` blocks in the encoder and as many in the decoder."""

    width: int
    depth: int
    heads: int
    diffloss_d: int
    diffloss_w: int
    cross: bool
    steps: str
    guidance_scale: float
    guidance_interval: float


SIZES = {
    "flowar_s": Size(768, 6, 12, 2, 1024, False, "25:15", 4.2, 0.9),
    "flowar_l": Size(1024, 8, 16, 12, 1024, True, "25:15", 2.4, 0.9),
    "flowar_h": Size(1536, 15, 16, 12, 1536, True, "50:15", 2.4, 0.7),
}


@dataclass(frozen=True)
class FlowARConfig(StackConfig):
    """Sizes of a FlowAR model, under the names of the official training options."""

    diffloss_d: int
    diffloss_w: int
    cross: bool

    @property
    def scales(self) -> tuple[int, ...]:
        """Side of the token grid in each AR step."""
        return scales_up_to(self.grid)

    @property
    def positions(self) -> int:
        """Tokens of all scales together."""
        return count_positions(self.grid)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diffloss_w % HEAD_DIM:
            raise DisaError(
                f"diffloss_w {self.diffloss_w} is not a multiple of {HEAD_DIM}, the channels of an "
                "attention head of FlowAR's flow head: fix the configuration"
            )


def scales_up_to(grid: int) -> tuple[int, ...]:
    """Sides of the token grids, each twice the one before: 1, 2, 4, ..., `grid`."""
    return tuple(2**power for power in range(grid.bit_length()))


def count_positions(grid: int) -> int:
    """Tokens of all scales together."""
    return sum(side * side for side in scales_up_to(grid))


def recognise(state: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of a FlowAR model."""
    return {"flownet.cond_embed.weight", "diffusion_pos_embed_learned"} <= state.keys()


def configure(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> FlowARConfig:
    """Determine the sizes of a checkpoint.

    All are read from the tensors, except that a checkpoint without its rotary tables does not show
    the attention heads: these come from `config`, from the training options `args`, or from the
    official sizes.

    Raises:
        DisaError: the heads are not known, or `config` contradicts the tensors.
    """
    cross = "flownet.res_blocks.0.crossattn.q.weight" in state
    from_tensors = {
        **stacks_in_tensors(state, count_positions),
        "diffloss_d": count_blocks(state, "flownet.res_blocks", WHERE),
        "diffloss_w": shape_of(state, "flownet.input_proj.weight", 2, WHERE)[0],
        "cross": cross,
    }
    heads = {size.width: size.heads for size in SIZES.values()}
    known = {field.name for field in fields(FlowARConfig)}
    return FlowARConfig(**merge_sizes(from_tensors, config, args, known, heads))


def official_config(name: str) -> FlowARConfig:
    """The sizes of an official ImageNet 256x256 model, such as `flowar_s`."""
    size = SIZES[name]
    return FlowARConfig(
        **official_stacks(size.width, size.depth, size.heads),
        diffloss_d=size.diffloss_d,
        diffloss_w=size.diffloss_w,
        cross=size.cross,
    )


def defaults(config: FlowARConfig) -> dict[str, Any]:
    """Sampling options of the official evaluation; those of the large model for other sizes."""
    official = {official_config(name): size for name, size in SIZES.items()}
    size = official.get(config, SIZES["flowar_l"])
    return {
        "steps": size.steps,
        "strategy": "linear",
        "guidance_scale": size.guidance_scale,
        "guidance_interval": size.guidance_interval,
    }
