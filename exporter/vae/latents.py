"""The scale and shift of the latents that a token model was trained on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import DisaError

LATENT_SCALE = 0.2325
"""The scale of the official models, which gives the latents of kl16 a deviation of about 1."""

OPTIONS = ("latent_scale", "latent_shift")
ALIASES = {"vae_scale": "latent_scale"}


@dataclass(frozen=True)
class LatentScale:
    """Models are trained on `(latents - shift) * scale`."""

    scale: float = LATENT_SCALE
    shift: float = 0.0

    def __post_init__(self) -> None:
        if not _is_number(self.scale) or not 0 < self.scale < math.inf:
            raise DisaError(f"latent_scale must be a positive number, not {_short(self.scale)}")
        if not _is_number(self.shift) or not math.isfinite(self.shift):
            raise DisaError(f"latent_shift must be a finite number, not {_short(self.shift)}")


def split_latent_scale(
    config: Mapping[str, Any] | None, scale: float | None = None, shift: float | None = None
) -> tuple[dict[str, Any], dict[str, float]]:
    """Split a configuration into the latent scale and the rest.

    Args:
        scale, shift: the values of the command line.

    Raises:
        DisaError: two values contradict each other, or one is not a number.
    """
    rest = dict(config or {})
    stated: dict[str, float] = {}
    for key in (*OPTIONS, *ALIASES):
        value = rest.pop(key, None)
        name = ALIASES.get(key, key)
        if value is None:
            continue
        if name in stated and stated[name] != value:
            raise DisaError(f"the configuration has {name} twice: {stated[name]} and {value}")
        stated[name] = value
    for name, value in zip(OPTIONS, (scale, shift), strict=True):
        if value is None:
            continue
        if name in stated and stated[name] != value:
            option = "--" + name.replace("_", "-")
            raise DisaError(
                f"the configuration has {name} {stated[name]}, but {option} is {value:g}"
            )
        stated[name] = value
    LatentScale(stated.get("latent_scale", 1.0), stated.get("latent_shift", 0.0))
    return rest, stated


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _short(value: Any) -> str:
    return repr(value)[:40]
