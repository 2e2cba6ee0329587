"""Opens a VAE: official files, Lightning checkpoints, and files and folders of diffusers."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checked_json import JSONError, any_object, load
from ...errors import DisaError
from ...files import read_bytes
from ..checkpoints.checkpoint import open_checkpoint
from . import decoder
from .decoder import KLConfig, KLDecoder
from .diffusers import KIND, check_configuration, is_diffusers, official_names
from .latents import LATENT_SCALE, OPTIONS, LatentScale

CONFIG = "config.json"
PIPELINE = "model_index.json"
MAX_CONFIG_BYTES = 1 << 20
STATED = {"scaling_factor": "latent_scale", "shift_factor": "latent_shift"}


@dataclass(frozen=True)
class OpenedVAE:
    """A VAE's tensors under official names, and its configuration of the latents.

    Attributes:
        stated: `latent_scale` and `latent_shift`, if the VAE's own files contain them.
        files: the files that were read.
    """

    path: Path
    config: KLConfig
    state: Mapping[str, Tensor]
    stated: Mapping[str, float]
    files: tuple[Path, ...] = ()

    @property
    def geometry(self) -> dict[str, int]:
        """The training options of a token model that the VAE determines."""
        return {"vae_embed_dim": self.config.latent_channels, "vae_stride": self.config.stride}

    def build(
        self, latent_channels: int, stride: int, overrides: Mapping[str, float] | None = None
    ) -> KLDecoder:
        """Build the decoder for a model whose latents have these channels and this stride.

        Args:
            overrides: `latent_scale` and `latent_shift`, if the user sets them.

        Raises:
            DisaError: it does not fit the model, or the scale of the latents is ambiguous.
        """
        self._check_fit(latent_channels, stride)
        latents = self._latents(overrides or {})
        return decoder.build(self.state, self.config, self.path, latents)

    def _check_fit(self, latent_channels: int, stride: int) -> None:
        found = (self.config.latent_channels, self.config.stride)
        if found == (latent_channels, stride):
            return
        raise DisaError(
            f"{self.path}: the VAE has {found[0]} latent channels and a stride of {found[1]} "
            f"pixels, but the model has {latent_channels} latent channels and needs a stride of "
            f"{stride}: use the VAE that the model was trained with; if this is the one, set "
            f"vae_embed_dim {found[0]}, vae_stride {found[1]} and the correct patch_size with "
            "--config"
        )

    def _latents(self, overrides: Mapping[str, float]) -> LatentScale:
        usual = dict(zip(OPTIONS, (LATENT_SCALE, 0.0), strict=True))
        for name, value in self.stated.items():
            if name not in overrides and value != usual[name]:
                option = "--" + name.replace("_", "-")
                raise DisaError(
                    f"{self.path}: the VAE's own files have {name} {value:g}, but the official "
                    f"training code uses {usual[name]:g} with any VAE: set {option} to the one of "
                    "the two that the model was trained with"
                )
        values = {**usual, **overrides}
        return LatentScale(values["latent_scale"], values["latent_shift"])


def open_vae(path: str | PathLike[str], weights: str | None = None) -> OpenedVAE:
    """Open a VAE and determine its sizes.

    Args:
        path: a file, or a folder: of a VAE, or of a pipeline of diffusers with one in `vae`.
        weights: the key of its weights, if the file has several sets.

    Raises:
        DisaError: it is not a VAE, or an unsupported one.
    """
    path = Path(path)
    if (path / PIPELINE).is_file() and (path / "vae").is_dir():
        path = path / "vae"
    opened = open_checkpoint(path, weights, decoder.recognise)
    state, stated = opened.state, {}
    beside = not path.is_dir()
    file = (path.parent if beside else path) / CONFIG
    if file.is_file() and (is_diffusers(state) or not beside):
        stated = _stated(file, beside)
    if is_diffusers(state):
        state = official_names(state)
    return OpenedVAE(path, decoder.configure(state, path), state, stated, opened.files)


def _stated(file: Path, beside: bool) -> dict[str, float]:
    """The scale and shift in a configuration of diffusers.

    Args:
        beside: whether it is only beside the VAE's file, so that it may belong to another model.
    """
    try:
        config: Mapping[str, Any] = any_object(
            load(read_bytes(file, MAX_CONFIG_BYTES), "the configuration")
        )
    except JSONError as error:
        if beside:
            return {}
        raise DisaError(f"{file}: {error}") from error
    if beside and config.get("_class_name") != KIND:
        return {}
    check_configuration(config, file)
    stated = {STATED[key]: config[key] for key in STATED if config.get(key) is not None}
    try:
        LatentScale(**{name.removeprefix("latent_"): value for name, value in stated.items()})
    except DisaError as error:
        raise DisaError(f"{file}: {error}") from error
    return stated
