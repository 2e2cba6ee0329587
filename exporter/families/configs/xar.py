"""Sizes of xAR models: the official ones, and those of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from .flow import StackConfig, merge_sizes, official_stacks, stacks_in_tensors

FAMILY = "xar"
QUADRANTS = 2
"""Clusters along a side of the image."""
CLUSTERS = QUADRANTS**2


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
class XARConfig(StackConfig):
    """Sizes of an xAR model, under the names of the official training options."""

    @property
    def cluster_tokens(self) -> int:
        """Tokens of a cluster."""
        return self.grid**2 // CLUSTERS


def recognise(state: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of an xAR model."""
    return {"pred.weight", "time_embed.mlp.0.weight", "z_proj_ln.weight"} <= state.keys()


def configure(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> XARConfig:
    """Determine the sizes of a checkpoint.

    All are read from the tensors, except that a checkpoint without its rotary tables does not show
    the attention heads: these come from `config`, from the training options `args`, or from the
    official sizes.

    Raises:
        DisaError: the heads are not known, or `config` contradicts the tensors.
    """
    from_tensors = stacks_in_tensors(state, lambda grid: grid**2)
    heads = {size.width: size.heads for size in SIZES.values()}
    known = {field.name for field in fields(XARConfig)}
    return XARConfig(**merge_sizes(from_tensors, config, args, known, heads))


def official_config(name: str) -> XARConfig:
    """The sizes of an official ImageNet 256x256 model, such as `xar_b`."""
    size = SIZES[name]
    return XARConfig(**official_stacks(size.width, size.depth, size.heads))


def defaults(config: XARConfig) -> dict[str, Any]:
    """Sampling options of the official evaluation; those of the large model for other sizes."""
    official = {official_config(name): size for name, size in SIZES.items()}
    size = official.get(config, SIZES["xar_l"])
    return {"steps": "50:15", "strategy": "linear", "guidance_scale": size.guidance_scale}
