"""Writes quantise/dequantise nodes around the matmuls of an ONNX graph.

An activation x becomes s * clip(round(x / s)), with one scale s for the tensor. A matrix has one
scale for each output channel. Both are symmetric, because TensorRT accepts only the zero point 0.
Biases are added in fp32, because TensorRT does not accept quantised ones. ONNX Runtime's own
quantiser is not used: it holds the whole model in memory, while here the weights stay in the plan,
and it writes zero points.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Floats
from .matmuls import Matmul


class Format(StrEnum):
    """An 8-bit format for both operands of a matmul."""

    INT8 = "int8"
    FP8 = "fp8"
    """E4M3 without infinities: four bits of exponent, three of mantissa."""

    @property
    def largest(self) -> float:
        """The largest magnitude in use. The range is symmetric, so -128 is not used."""
        return {"int8": 127.0, "fp8": 448.0}[self.value]

    @property
    def onnx_type(self) -> int:
        """The element type in onnx.proto."""
        return {"int8": 3, "fp8": 17}[self.value]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The NumPy type of a quantised array."""
        if self is Format.INT8:
            return np.dtype(np.int8)
        import ml_dtypes

        float8: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
        return float8


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix [depth, channels] in 8 bits and the scale of each channel.

    The matrix is approximately `values * scales`.
    """

    values: npt.NDArray[Any]
    scales: Floats


def quantize_matrix(matrix: Floats, axis: int, form: Format) -> QuantizedMatrix:
    """Quantise a matrix whose output channels lie along `axis`, each by its largest magnitude."""
    upright = np.ascontiguousarray(matrix if axis == 1 else matrix.T)
    largest = np.abs(upright).max(axis=0)
    scales = (largest / form.largest).astype(np.float32)
    scales[scales == 0] = 1  # the channel is 0, or too small for a scale in fp32
    return QuantizedMatrix(to_format(upright / scales, form), scales)


def to_format(values: Floats, form: Format) -> npt.NDArray[Any]:
    """Round scaled values to the format: to nearest, ties to even, clipped to its range."""
    inside = np.clip(values, -form.largest, form.largest)
    if form is Format.INT8:
        inside = np.rint(inside)
    return inside.astype(form.dtype)


def insert_quantization(
    model: Any,
    chosen: Collection[Matmul],
    scales: Mapping[str, float],
    matrices: Mapping[str, Any],
    matrix_scales: Mapping[str, Floats],
    form: Format,
) -> Any:
    """A copy of a model in which some matmuls are computed in 8 bits.

    Args:
        model: ONNX model; its weights need not be loaded.
        chosen: the matmuls.
        scales: scale of each activation.
        matrices: for each weight, the quantised initializer that replaces it, [depth, channels].
        matrix_scales: for each weight, the scales of its channels.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    by_node = {matmul.node: matmul for matmul in chosen}
    nodes: list[Any] = []
    used: dict[str, Any] = {}
    for node in graph.node:
        matmul = by_node.get(node.name)
        if matmul is None:
            nodes.append(node)
            continue
        left, right = _Operand(f"{matmul.node}.left"), _Operand(f"{matmul.node}.right")
        matrix = _unshared(matrices[matmul.weight], right, used)
        graph.initializer.extend(left.parameters(np.float32(scales[matmul.activation]), form))
        graph.initializer.extend(right.parameters(matrix_scales[matmul.weight], form))
        nodes.append(left.quantize(matmul.activation))
        nodes.append(left.dequantize(left.quantized))
        nodes.append(right.dequantize(matrix.name, axis=1))
        nodes.extend(_matmul_nodes(node, matmul, left, right))
    graph.initializer.extend(used.values())
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    _remove_unused(graph)
    return result


@dataclass(frozen=True)
class _Operand:
    """Names and nodes of one side of a quantised matmul.

    Each matmul has its own, even if several multiply the same tensor: ONNX Runtime does not fuse a
    matmul whose quantised operand is also used by another one.
    """

    name: str

    @property
    def quantized(self) -> str:
        return f"{self.name}.quantized"

    @property
    def rounded(self) -> str:
        return f"{self.name}.rounded"

    def parameters(self, scale: Any, form: Format) -> list[Any]:
        """Scale and zero point."""
        from onnx import TensorProto, numpy_helper

        scales = np.asarray(scale, np.float32)
        zeros = TensorProto(
            name=f"{self.name}.zero",
            data_type=form.onnx_type,
            dims=scales.shape,
            raw_data=bytes(scales.size),
        )
        return [numpy_helper.from_array(scales, f"{self.name}.scale"), zeros]

    def quantize(self, source: str) -> Any:
        return self._node("QuantizeLinear", source, self.quantized)

    def dequantize(self, source: str, **attributes: Any) -> Any:
        return self._node("DequantizeLinear", source, self.rounded, **attributes)

    def _node(self, kind: str, source: str, result: str, **attributes: Any) -> Any:
        from onnx import helper

        inputs = [source, f"{self.name}.scale", f"{self.name}.zero"]
        return helper.make_node(kind, inputs, [result], f"{result}.{kind}", **attributes)


def _unshared(matrix: Any, operand: _Operand, used: dict[str, Any]) -> Any:
    """The matrix, or one of another name with the same data if it is used already.

    ONNX Runtime's exact int8 kernels (see `engines.cpu.exact_int8`) cannot be loaded if two
    matmuls share a matrix.
    """
    if matrix.name in used:
        copy = type(matrix)()
        copy.CopyFrom(matrix)
        copy.name = f"{operand.name}.matrix"
        matrix = copy
    used[matrix.name] = matrix
    return matrix


def _matmul_nodes(node: Any, matmul: Matmul, left: _Operand, right: _Operand) -> list[Any]:
    """The matmul of rounded operands. A Gemm is split: no engine fuses it with an fp32 bias."""
    from onnx import helper

    operands = [left.rounded, right.rounded]
    if not matmul.bias:
        return [helper.make_node("MatMul", operands, list(node.output), node.name)]
    whole = f"{node.output[0]}.product"
    return [
        helper.make_node("MatMul", operands, [whole], node.name),
        helper.make_node("Add", [whole, matmul.bias], list(node.output), f"{node.name}.bias"),
    ]


def _remove_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
