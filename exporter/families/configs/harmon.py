"""Sizes of Harmon models: the official ones, and those of a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ....errors import DisaError
from ...layers import qwen2
from ...vae.latents import split_latent_scale
from . import mar
from .mar import MARConfig
from .sizes import check_keys

FAMILY = "harmon"
SIZES = {
    "harmon_0.5b": {"llm": "qwen2.5_0.5b", "mar": "mar_b"},
    "harmon_1.5b": {"llm": "qwen2.5_1.5b", "mar": "mar_h"},
}
ENLARGEMENT = 2
"""Side of generated images in the official scripts, relative to the trained one: 512 for 256."""

MAX_ENGINE_BATCH = 64
"""Most images whose prompts an engine processes together, if all are different."""


@dataclass(frozen=True)
class HarmonConfig:
    """Sizes of the two halves."""

    llm: qwen2.Config
    mar: MARConfig


def recognise(state: Mapping[str, Any]) -> bool:
    """Whether these are the tensors of a Harmon model."""
    return {"llm.model.embed_tokens.weight", "mar.mask_token", "proj_in.0.weight"} <= state.keys()


def configure(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
) -> HarmonConfig:
    """Determine the sizes of a checkpoint.

    Sizes are read from the tensors if possible; the rest comes from `config` (with the entries
    `llm` and `mar`), then from the official models of that width.

    Raises:
        DisaError: a size is missing, or `config` contradicts the tensors.
    """
    given, _ = split_latent_scale(config)
    check_keys(given, ("llm", "mar"), "the configuration")
    for part in ("llm", "mar"):
        if not isinstance(given.get(part, {}), Mapping):
            raise DisaError(f"the configuration's {part} must be an object with sizes")
    llm = qwen2.configure(_under(state, "llm.model."), given.get("llm", {}))
    half = mar.configure_transformer(
        _under(state, "mar."), given.get("mar"), args, "the configuration's mar"
    )
    return HarmonConfig(llm, half)


def manifest(config: HarmonConfig) -> dict[str, Any]:
    """The model's part of the manifest, for the runtime."""
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
            # Engines are built for these: images no larger than the usual ones in any direction.
            "dimensions": {
                **mar.mask_dimensions(grid**2),
                "length": [1, grid**2, grid**2],
                "height": [1, grid, grid],
                "width": [1, grid, grid],
                "prompts": [1, 5, 2 * MAX_ENGINE_BATCH],
                "prompt_length": [1, 32, 256],
            },
        },
        "image": {"height": size, "width": size},
        "defaults": {
            "num_iterations": 64,
            "steps": "50:5",
            "strategy": "linear",
            "sampler": "ddpm",
            "guidance_scale": 3.0,
            "guidance_schedule": "constant",
            "temperature": 1.0,
            "size": str(size),
        },
    }


def official_config(name: str) -> HarmonConfig:
    """The sizes of an official model, `harmon_0.5b` or `harmon_1.5b`."""
    size = SIZES[name]
    return HarmonConfig(qwen2.official_config(size["llm"]), mar.official_config(size["mar"]))


def size_name(config: HarmonConfig) -> str:
    """The official name of these sizes, or just the family's."""
    for name, size in SIZES.items():
        llm, half = qwen2.SIZES[size["llm"]], mar.SIZES[size["mar"]]
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
