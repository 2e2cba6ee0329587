"""Writes quantise/dequantise nodes around the matrix products of an ONNX graph.

An activation x becomes s * clip(round(x / s)) with one scale s for the tensor, a matrix the same
with a scale for each output channel. Both are symmetric: TensorRT takes no other zero point
than 0. Biases are added in fp32, since TensorRT refuses them quantised.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from .products import Product

Floats = npt.NDArray[np.float32]


class Format(StrEnum):
    """An 8-bit format for both operands of a product."""

    INT8 = "int8"
    FP8 = "fp8"
    """E4M3 without infinities: four bits of exponent, three of mantissa."""

    @property
    def largest(self) -> float:
        """The largest magnitude that is used; -128 is not, so that the range is symmetric."""
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

        return np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix [depth, channels] in 8 bits and the scale of each channel.

    The matrix is about `values * scales`.
    """

    values: npt.NDArray[Any]
    scales: Floats


def quantize_matrix(matrix: Floats, axis: int, form: Format) -> QuantizedMatrix:
    """Quantise a matrix whose output channels lie along `axis`, each by its largest magnitude."""
    upright = np.ascontiguousarray(matrix if axis == 1 else matrix.T)
    largest = np.abs(upright).max(axis=0)
    scales = (largest / form.largest).astype(np.float32)
    scales[scales == 0] = 1  # nothing in the channel, or less than a scale can tell from it
    return QuantizedMatrix(to_format(upright / scales, form), scales)


def to_format(values: Floats, form: Format) -> npt.NDArray[Any]:
    """Scaled values in the format, to the nearest, ties to even, beyond its range to its ends."""
    inside = np.clip(values, -form.largest, form.largest)
    if form is Format.INT8:
        inside = np.rint(inside)
    return inside.astype(form.dtype)


def insert_quantization(
    model: Any,
    chosen: Collection[Product],
    scales: Mapping[str, float],
    matrices: Mapping[str, Any],
    matrix_scales: Mapping[str, Floats],
    form: Format,
) -> Any:
    """A copy of a model in which some products are computed in 8 bits.

    Args:
        model: ONNX model; its weights need not be loaded.
        chosen: the products.
        scales: scale of each activation.
        matrices: initializer, [depth, channels], in place of each weight of the products.
        matrix_scales: its scales by channel.
    """
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    by_node = {product.node: product for product in chosen}
    nodes: list[Any] = []
    for node in graph.node:
        product = by_node.get(node.name)
        if product is None:
            nodes.append(node)
            continue
        left, right = _Operand(f"{product.node}.left"), _Operand(f"{product.node}.right")
        matrix = matrices[product.weight]
        graph.initializer.extend(left.parameters(np.float32(scales[product.activation]), form))
        graph.initializer.extend(right.parameters(matrix_scales[product.weight], form))
        nodes.append(left.quantize(product.activation))
        nodes.append(left.dequantize(left.quantized))
        nodes.append(right.dequantize(matrix.name, axis=1))
        nodes.extend(_product_nodes(node, product, left, right))
    graph.initializer.extend({matrices[p.weight].name: matrices[p.weight] for p in chosen}.values())
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    _remove_unused(graph)
    return result


@dataclass(frozen=True)
class _Operand:
    """Names and nodes of one side of a quantised product.

    Each product has its own, also where several multiply the same tensor: ONNX Runtime fuses
    no product whose quantised operand another one uses too.
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


def _product_nodes(node: Any, product: Product, left: _Operand, right: _Operand) -> list[Any]:
    """The product on rounded operands. A Gemm is split: with an fp32 bias no engine fuses it."""
    from onnx import helper

    operands = [left.rounded, right.rounded]
    if not product.bias:
        return [helper.make_node("MatMul", operands, list(node.output), node.name)]
    whole = f"{node.output[0]}.product"
    return [
        helper.make_node("MatMul", operands, [whole], node.name),
        helper.make_node("Add", [whole, product.bias], list(node.output), f"{node.name}.bias"),
    ]


def _remove_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
