"""The model families that can be exported."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from ...errors import DisaError
from ..graphs.graph import Graph
from ..vae.decoder import KLDecoder

MODULES = ("mar", "harmon", "flowar", "xar")


_NAMING = (
    "decoder_depth", "diffloss_d", "diffloss_w", "encoder_depth", "encoder_embed_dim",
    "hidden_size", "num_hidden_layers",
)  # fmt: skip


class Family(Protocol):
    """The functions and constants of a family's module."""

    FAMILY: str
    SIZES: Mapping[str, Any]
    """The official sizes by name, such as `mar_b`."""
    Config: type
    """The class of its sizes."""
    Model: Callable[[Any], nn.Module]
    """The module with an official checkpoint's keys, created from a `Config`."""
    READS_TEXT: bool
    """Whether its plans need a tokenizer."""

    def official_config(self, name: str) -> Any:
        """The `Config` of an official size."""
        ...

    def released(self, state: Mapping[str, Tensor], config: Any) -> object:
        """What the official training code or release saves for a model with these weights."""
        ...

    def recognise(self, state: Mapping[str, Any]) -> bool:
        """Whether these are the tensors of this family."""
        ...

    def configure(
        self,
        state: Mapping[str, Tensor],
        config: Mapping[str, Any] | None,
        args: Mapping[str, Any] | None,
    ) -> Any:
        """Sizes of the checkpoint, from its tensors, `--config`, and its training options."""
        ...

    def build(self, state: Mapping[str, Tensor], config: Any, where: Path | str) -> nn.Module:
        """The model in fp32, with its weights."""
        ...

    def unused_at_inference(self, key: str) -> bool:
        """Whether a tensor of official checkpoints is not needed for inference."""
        ...

    def graphs(self, model: Any, vae: KLDecoder | None = None) -> list[Graph]:
        """The graphs of a plan, in fp32."""
        ...

    def manifest(self, config: Any) -> dict[str, Any]:
        """Family, sizes, token and image geometry, and default options, for the manifest."""
        ...


def all_families() -> list[Family]:
    """The modules of all families."""
    return [cast(Family, import_module(f".{name}", __package__)) for name in MODULES]


def is_known(state: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a model that disa supports."""
    return any(family.recognise(state) for family in all_families())


def model_name(family: str, config: Any) -> str:
    """The official name of these sizes, such as `mar_b`; else the family and its width."""
    module = next(module for module in all_families() if family == module.FAMILY)
    for name in module.SIZES:
        if _shape(module.official_config(name)) == _shape(config):
            return str(name)
    width = getattr(getattr(config, "mar", config), "encoder_embed_dim", None)
    return f"{family}_{width}" if width else family


def _shape(config: Any) -> dict[str, Any]:
    """The sizes in which official models differ."""
    sizes: dict[str, Any] = {}
    for part in (asdict(config), asdict(config).get("mar", {}), asdict(config).get("llm", {})):
        sizes |= {key: value for key, value in part.items() if key in _NAMING}
    return sizes


def find_family(state: Mapping[str, Tensor], where: Path) -> Family:
    """The family of these tensors.

    Raises:
        DisaError: they belong to no known family.
    """
    families = all_families()
    for family in families:
        if family.recognise(state):
            return family
    known = ", ".join(family.FAMILY for family in families)
    keys = ", ".join(sorted(state)[:3])
    raise DisaError(
        f"{where}: these tensors ({keys}, ...) belong to no family that disa supports "
        f"({known}): use the checkpoint of the model itself, not of its VAE or optimizer"
    )
