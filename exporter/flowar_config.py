"""Sizes of FlowAR models: the official ones, and what a checkpoint tells of others."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ..errors import DisaError
from .flow_config import WHERE, StackConfig, merge_sizes, official_stacks, stacks_in_tensors
from .weights import count_blocks, shape_of

FAMILY = "flowar"
SCALES = (1, 2, 4, 8, 16)
"""Side of the token grid in each AR step."""
POSITIONS = sum(side * side for side in SCALES)
HEAD_DIM = 64
"""Channels of an attention head of the flow head, at every width."""


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
class Config(StackConfig):
    """Sizes of a FlowAR model, under the names of the official training options."""

    diffloss_d: int
    diffloss_w: int
    cross: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.diffloss_w % HEAD_DIM:
            raise DisaError(
                f"diffloss_w {self.diffloss_w} is no multiple of {HEAD_DIM}, the channels of an "
                "attention head of FlowAR's flow head: mend the configuration"
            )


def recognise(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a FlowAR model."""
    return {"flownet.cond_embed.weight", "diffusion_pos_embed_learned"} <= state.keys()


def configure(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> Config:
    """The sizes of a checkpoint.

    All are read from the tensors; only a checkpoint without its rotary tables leaves the
    attention heads to `config`, to the training options `args`, or to the official sizes.

    Raises:
        DisaError: nobody tells the heads, or `config` contradicts the tensors.
    """
    cross = "flownet.res_blocks.0.crossattn.q.weight" in state
    told = {
        **stacks_in_tensors(state, POSITIONS),
        "diffloss_d": count_blocks(state, "flownet.res_blocks", WHERE),
        "diffloss_w": shape_of(state, "flownet.input_proj.weight", 2, WHERE)[0],
        "cross": cross,
    }
    heads = {size.width: size.heads for size in SIZES.values()}
    known = {field.name for field in fields(Config)}
    return Config(**merge_sizes(told, config, args, known, heads))


def official_config(name: str) -> Config:
    """The sizes of an official ImageNet 256x256 model, such as `flowar_s`."""
    size = SIZES[name]
    return Config(
        **official_stacks(size.width, size.depth, size.heads),
        diffloss_d=size.diffloss_d,
        diffloss_w=size.diffloss_w,
        cross=size.cross,
    )


def defaults(config: Config) -> dict[str, Any]:
    """Sampling options of the official evaluation; of the large model for other sizes."""
    official = {official_config(name): size for name, size in SIZES.items()}
    size = official.get(config, SIZES["flowar_l"])
    return {
        "steps": size.steps,
        "strategy": "linear",
        "cfg": size.guidance_scale,
        "guidance_interval": size.guidance_interval,
    }
