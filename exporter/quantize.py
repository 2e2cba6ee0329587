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
    scales = np.where(largest > 0, largest / form.largest, 1.0).astype(np.float32)
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
    written: set[str] = set()
    for node in graph.node:
        product = by_node.get(node.name)
        if product is None:
            nodes.append(node)
            continue
        for name, make in (
            (product.activation, _activation_nodes),
            (product.weight, _matrix_nodes),
        ):
            if name not in written:
                written.add(name)
                made, initializers = make(name, scales, matrices, matrix_scales, form)
                nodes.extend(made)
                graph.initializer.extend(initializers)
        nodes.extend(_product_nodes(node, product))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
    _remove_unused(graph)
    return result


def _activation_nodes(
    name: str,
    scales: Mapping[str, float],
    _matrices: Mapping[str, Any],
    _matrix_scales: Mapping[str, Floats],
    form: Format,
) -> tuple[list[Any], list[Any]]:
    from onnx import helper

    parameters = [f"{name}.scale", f"{name}.zero"]
    initializers = [
        _scale(parameters[0], np.float32(scales[name])),
        _zeros(parameters[1], (), form),
    ]
    quantize = helper.make_node(
        "QuantizeLinear", [name, *parameters], [f"{name}.quantized"], f"{name}.quantize"
    )
    widen = helper.make_node(
        "DequantizeLinear",
        [f"{name}.quantized", *parameters],
        [f"{name}.rounded"],
        f"{name}.dequantize",
    )
    return [quantize, widen], initializers


def _matrix_nodes(
    name: str,
    _scales: Mapping[str, float],
    matrices: Mapping[str, Any],
    matrix_scales: Mapping[str, Floats],
    form: Format,
) -> tuple[list[Any], list[Any]]:
    from onnx import helper

    by_channel = matrix_scales[name]
    parameters = [f"{name}.scale", f"{name}.zero"]
    initializers = [
        matrices[name],
        _scale(parameters[0], by_channel),
        _zeros(parameters[1], by_channel.shape, form),
    ]
    widen = helper.make_node(
        "DequantizeLinear",
        [matrices[name].name, *parameters],
        [f"{name}.rounded"],
        f"{name}.dequantize",
        axis=1,
    )
    return [widen], initializers


def _product_nodes(node: Any, product: Product) -> list[Any]:
    """The product on rounded operands. A Gemm is split: with an fp32 bias no engine fuses it."""
    from onnx import helper

    operands = [f"{product.activation}.rounded", f"{product.weight}.rounded"]
    if not product.bias:
        return [helper.make_node("MatMul", operands, list(node.output), node.name)]
    whole = f"{node.output[0]}.product"
    return [
        helper.make_node("MatMul", operands, [whole], node.name),
        helper.make_node("Add", [whole, product.bias], list(node.output), f"{node.name}.bias"),
    ]


def _scale(name: str, values: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def _zeros(name: str, shape: tuple[int, ...], form: Format) -> Any:
    from onnx import TensorProto

    return TensorProto(
        name=name,
        data_type=form.onnx_type,
        dims=shape,
        raw_data=bytes(int(np.prod(shape, dtype=np.int64))),
    )


def _remove_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
