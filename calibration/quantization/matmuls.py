"""The matmuls of an ONNX graph that can be quantised: those with a constant matrix.

Matmuls of two activations, as in attention, are few and small in comparison, and their ranges
depend on the input: they are not quantised.
"""

from dataclasses import dataclass
from typing import Any

MIN_DEPTH = 32
"""Smallest depth of a matmul: below it, scaling costs more than quantisation saves."""


@dataclass(frozen=True)
class Matmul:
    """A MatMul or Gemm node with a constant matrix.

    Attributes:
        node: name of the node.
        activation: tensor that is multiplied, [..., depth].
        weight: initializer with the matrix.
        axis: axis of the weight with the output channels; the other is the depth.
        bias: bias of a Gemm; "" if there is none.
        size: elements of the matrix.
    """

    node: str
    activation: str
    weight: str
    axis: int
    bias: str
    size: int


def find_matmuls(model: Any) -> list[Matmul]:
    """The matmuls of a model that can be quantised, in the order of the graph."""
    matrices = {
        tensor.name: tuple(tensor.dims)
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == _FLOAT
    }
    found = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in matrices:
            continue
        if node.input[0] in matrices or not _plain(node):
            continue
        axis = 0 if _attributes(node).get("transB") else 1
        shape = matrices[node.input[1]]
        if shape[1 - axis] >= MIN_DEPTH:
            bias = node.input[2] if len(node.input) > 2 else ""
            size = shape[0] * shape[1]
            found.append(Matmul(node.name, node.input[0], node.input[1], axis, bias, size))
    return found


_FLOAT = 1  # TensorProto.FLOAT


def _plain(node: Any) -> bool:
    """Whether the node is x @ W or x @ W + b, without other attributes."""
    given = {"alpha": 1.0, "beta": 1.0, "transA": 0, **_attributes(node)}
    return given["alpha"] == given["beta"] == 1.0 and not given["transA"]


def _attributes(node: Any) -> dict[str, float]:
    return {a.name: a.f if a.name in ("alpha", "beta") else a.i for a in node.attribute}
