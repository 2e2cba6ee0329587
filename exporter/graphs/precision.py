"""The dtype in which a graph computes.

Matmuls run in the selected dtype; norms, softmax, residual sums and sampler arithmetic stay in
fp32, where fp16 would overflow and bf16 would lose small terms.
"""

from enum import StrEnum
from typing import TypeVar

import torch
from torch import nn

from ...errors import DisaError
from ..checkpoints.state_dict import overflowing

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Precision(StrEnum):
    """Precision of the matmuls of a graph."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.value]


class NarrowEmbedding(nn.Embedding):
    """An embedding table in the graph's precision, whose rows are converted back to fp32."""


def set_precision(module: ModuleT, precision: Precision) -> ModuleT:
    """Convert the weights of every linear and convolution layer to this precision, in place.

    Of the embedding tables only `NarrowEmbedding` is converted: most are small, and their rows are
    added to fp32 sums.

    Raises:
        DisaError: a weight becomes infinite.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Conv2d | NarrowEmbedding):
            _check_range(name, child, precision)
            child.to(precision.dtype)
    return module


def _check_range(layer: str, module: nn.Module, precision: Precision) -> None:
    for name, weight in module.named_parameters(layer):
        if weight.is_meta:
            continue
        if (largest := overflowing(weight.detach(), precision.dtype)) is not None:
            raise DisaError(
                f"the weight {name} has values up to {largest:.3g}, which are infinite in "
                f"{precision}: choose another precision, such as fp32"
            )
