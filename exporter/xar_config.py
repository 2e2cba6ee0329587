"""Sizes of xAR models: the official ones, and what a checkpoint tells of others."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from .flow_config import StackConfig, merge_sizes, official_stacks, stacks_in_tensors
from .flow_layers import GRID

FAMILY = "xar"
QUADRANTS = 2
"""Clusters along a side of the image."""
CLUSTERS = QUADRANTS**2
TOKENS = GRID**2
CLUSTER_TOKENS = TOKENS // CLUSTERS


@dataclass(frozen=True)
class Size:
    """An official model: `depth` blocks in the encoder and as many in the decoder."""

    width: int
    depth: int
    heads: int
    guidance_scale: float


SIZES = {
    "xar_b": Size(768, 8, 12, guidance_scale=2.7),
    "xar_l": Size(1024, 16, 16, guidance_scale=2.3),
    "xar_h": Size(1280, 20, 16, guidance_scale=2.2),
}


@dataclass(frozen=True)
class Config(StackConfig):
    """Sizes of an xAR model, under the names of the official training options."""


def recognise(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of an xAR model."""
    return {"pred.weight", "time_embed.mlp.0.weight", "z_proj_ln.weight"} <= state.keys()


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
    told = stacks_in_tensors(state, TOKENS)
    heads = {size.width: size.heads for size in SIZES.values()}
    known = {field.name for field in fields(Config)}
    return Config(**merge_sizes(told, config, args, known, heads))


def official_config(name: str) -> Config:
    """The sizes of an official ImageNet 256x256 model, such as `xar_b`."""
    size = SIZES[name]
    return Config(**official_stacks(size.width, size.depth, size.heads))


def defaults(config: Config) -> dict[str, Any]:
    """Sampling options of the official evaluation; of the large model for other sizes."""
    official = {official_config(name): size for name, size in SIZES.items()}
    size = official.get(config, SIZES["xar_l"])
    return {"steps": "50:15", "strategy": "linear", "cfg": size.guidance_scale}
