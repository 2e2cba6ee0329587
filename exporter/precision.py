"""The dtype a graph computes in.

Matrix products run in the chosen dtype; norms, softmax, residual sums and sampler
arithmetic stay in fp32, where fp16 would overflow and bf16 would lose the small terms.
"""

from enum import StrEnum
from typing import TypeVar

import torch
from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Precision(StrEnum):
    """Precision of the matrix products of a graph."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[self.value]


class NarrowEmbedding(nn.Embedding):
    """A table that takes the graph's precision, for whoever casts its rows back to fp32."""


def set_precision(module: ModuleT, precision: Precision) -> ModuleT:
    """Give every linear and convolution layer of `module` weights of this precision, in place.

    Of embedding tables only `NarrowEmbedding` follows: most are small, and their rows are
    added to fp32 sums.
    """
    for child in module.modules():
        if isinstance(child, nn.Linear | nn.Conv2d | NarrowEmbedding):
            child.to(precision.dtype)
    return module
