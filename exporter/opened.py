"""A checkpoint opened as a model, for export and comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..files import as_text
from .checkpoints.checkpoint import Checkpoint, open_checkpoint
from .checkpoints.lora import Merged, merge_lora
from .families.fit import Ignored, check_places
from .families.registry import Family, find_family, is_known
from .vae.files import OpenedVAE


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint with its family and sizes.

    Attributes:
        checkpoint: with adapters merged.
        sizes: the family's configuration.
    """

    checkpoint: Checkpoint
    family: Family
    sizes: Any
    lora: Merged
    source: Path

    def build(self, ignore: Sequence[str] = ()) -> tuple[nn.Module, Ignored]:
        """Build the model in fp32; returns it and the ignored tensors.

        Args:
            ignore: patterns of tensors that the model does not use.

        Raises:
            DisaError: tensors are missing, do not fit, or are not expected.
        """
        state = self.checkpoint.state
        model = self.family.build(state, self.sizes, self.source)
        places = {
            key for key in state if self.family.unused_at_inference(key)
        } | model.state_dict().keys()
        ignored = check_places(state, places, ignore, self.source, self.family.FAMILY)
        return model, ignored

    def describe(self, ignored: Ignored) -> dict[str, Any]:
        """The entry `source` of a plan's manifest."""
        checkpoint = self.checkpoint
        source: dict[str, Any] = {
            "file": as_text(self.source.name),
            "layout": checkpoint.layout,
            "weights": checkpoint.weights,
            "averaged": checkpoint.averaged,
            "sha256": checkpoint.sha256(),
        }
        if self.lora.layers:
            source["lora"] = self.lora.describe()
        if ignored.tensors:
            source["ignored"] = ignored.describe()
        return source


def open_model(
    source: Path,
    config: Mapping[str, Any] | None = None,
    weights: str | None = None,
    vae: OpenedVAE | None = None,
    recorded: str | None = None,
) -> OpenedModel:
    """Open a checkpoint and determine its family and sizes.

    Args:
        config: sizes that tensors do not show.
        weights: the key of the weights, if there are several sets.
        vae: determines the geometry of the latents if nothing else does.
        recorded: the key that a plan was made from; used if the file has it.

    Raises:
        DisaError: it is not a checkpoint of a known family, or a size is missing or wrong.
    """
    opened = open_checkpoint(source, weights, is_known, recorded)
    merged = merge_lora(opened.state, opened.args, source)
    opened = replace(opened, state=merged.state)
    family = find_family(merged.state, source)
    options = {**(vae.geometry if vae else {}), **opened.args}
    sizes = family.configure(merged.state, config, options)
    return OpenedModel(opened, family, sizes, merged, source)
