"""Sizes of Harmon models: the official ones, and what a checkpoint tells of others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..errors import DisaError
from . import mar_config, qwen2
from .sizes import check_sizes
from .vae import LATENT_SCALE

FAMILY = "harmon"
SIZES = {
    "harmon_0.5b": {"llm": "qwen2.5_0.5b", "mar": "mar_b"},
    "harmon_1.5b": {"llm": "qwen2.5_1.5b", "mar": "mar_h"},
}
ENLARGEMENT = 2
"""Side of the images that the official scripts draw, in terms of the trained one: 512 for 256."""

MAX_ENGINE_BATCH = 64
"""Images whose prompts an engine takes together, if all are different."""


@dataclass(frozen=True)
class Config:
    """Sizes of the two halves, and the factor of the latents before the VAE."""

    llm: qwen2.Config
    mar: mar_config.Config
    vae_scale: float = LATENT_SCALE

    def __post_init__(self) -> None:
        check_sizes(type(self), vars(self), "the configuration's")


def recognise(state: Mapping[str, Tensor]) -> bool:
    """Whether these are the tensors of a Harmon model."""
    return {"llm.model.embed_tokens.weight", "mar.mask_token", "proj_in.0.weight"} <= state.keys()


def configure(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> Config:
    """The sizes of a checkpoint.

    What the tensors tell is read from them; the rest comes from `config` (with the entries
    `llm`, `mar` and `vae_scale`), then from the official models of that width.

    Raises:
        DisaError: a size is told by nobody, or `config` contradicts the tensors.
    """
    given = config or {}
    for part in ("llm", "mar"):
        if not isinstance(given.get(part, {}), Mapping):
            raise DisaError(f"the configuration's {part} must be an object with sizes")
    llm = qwen2.configure(_under(state, "llm.model."), given.get("llm", {}))
    half = mar_config.configure(_under(state, "mar."), given.get("mar"), args)
    return Config(llm, half, given.get("vae_scale", LATENT_SCALE))


def manifest(config: Config) -> dict[str, Any]:
    """What the runtime needs to know of the model."""
    half, size = config.mar, ENLARGEMENT * config.mar.img_size
    side, stride = size // half.vae_stride, half.vae_stride * half.patch_size
    grid = size // stride
    return {
        "family": FAMILY,
        "model": {"size": size_name(config), **asdict(config)},
        "tokens": {
            "count": grid**2,
            "channels": half.channels,
            "latent_shape": [half.vae_embed_dim, side, side],
            "native_grid": half.grid,
            "stride": stride,
            # What engines are built for: images no larger than the usual ones in any direction.
            "dimensions": {
                "length": [1, grid**2, grid**2],
                "height": [1, grid, grid],
                "width": [1, grid, grid],
                "prompts": [1, 5, 2 * MAX_ENGINE_BATCH],
                "prompt_length": [1, 32, 256],
            },
        },
        "image": {"height": size, "width": size},
        "defaults": {
            "iterations": 64,
            "steps": "50:5",
            "strategy": "linear",
            "sampler": "ddpm",
            "cfg": 3.0,
            "cfg_schedule": "constant",
            "temperature": 1.0,
            "size": str(size),
        },
    }


def official_config(name: str) -> Config:
    """The sizes of an official model, `harmon_0.5b` or `harmon_1.5b`."""
    size = SIZES[name]
    return Config(qwen2.official_config(size["llm"]), mar_config.official_config(size["mar"]))


def size_name(config: Config) -> str:
    """The official name of these sizes, or just the family's."""
    for name, size in SIZES.items():
        llm, half = qwen2.SIZES[size["llm"]], mar_config.SIZES[size["mar"]]
        wanted = (half.width, half.depth, half.diffloss_d, half.diffloss_w)
        found = config.mar
        if llm.items() <= asdict(config.llm).items() and wanted == (
            found.encoder_embed_dim,
            found.encoder_depth,
            found.diffloss_d,
            found.diffloss_w,
        ):
            return name
    return FAMILY


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }
