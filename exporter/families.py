"""The model families that can be exported."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from torch import Tensor, nn

from ..errors import DisaError
from .graph import Graph
from .vae import KLDecoder

MODULES = ("mar", "harmon", "flowar", "xar")


class Family(Protocol):
    """What a family's module offers."""

    FAMILY: str

    def recognise(self, state: Mapping[str, Tensor]) -> bool:
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

    def is_needless(self, key: str) -> bool:
        """Whether drawing has no use for a tensor that official checkpoints have."""
        ...

    def graphs(self, model: Any, vae: KLDecoder | None = None) -> list[Graph]:
        """The graphs of a plan, in fp32."""
        ...

    def manifest(self, config: Any) -> dict[str, Any]:
        """Family, sizes, token and image geometry, and default options, for the manifest."""
        ...


def find_family(state: Mapping[str, Tensor], where: Path) -> Family:
    """The family that these tensors belong to.

    Raises:
        DisaError: none of them.
    """
    families = [cast(Family, import_module(f".{name}", __package__)) for name in MODULES]
    for family in families:
        if family.recognise(state):
            return family
    known = ", ".join(family.FAMILY for family in families)
    keys = ", ".join(sorted(state)[:3])
    raise DisaError(
        f"{where}: these tensors ({keys}, ...) belong to none of the families that disa knows "
        f"({known}): give the checkpoint of the model itself, not of its VAE or optimizer"
    )
