from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from disa.calibration.quantization.graph_session import GraphSession
from disa.calibration.quantization.matmuls import Matmul, find_matmuls
from disa.calibration.quantization.qdq import (
    Format,
    insert_quantization,
    quantize_matrix,
    to_format,
)
from disa.engines.plan.manifest import GraphInfo
from disa.engines.plan.traits import GraphTraits, Role
from disa.engines.session import TensorSpec

RNG = np.random.default_rng(0)
FIRST = RNG.standard_normal((32, 48)).astype(np.float32) * np.linspace(0.1, 9, 48, dtype=np.float32)
SECOND = RNG.standard_normal((40, 48)).astype(np.float32)
BIAS = RNG.standard_normal(40).astype(np.float32)
INFO = GraphInfo(
    "tiny",
    "tiny.onnx",
    (),
    (TensorSpec("x", "float32", ("rows", 32)),),
    (TensorSpec("y", "float32", ("rows", 40)),),
    GraphTraits(Role.ONCE),
)


def tiny_model(alpha: float = 1.0) -> Any:
    """x @ FIRST, twice used, then a Gemm with SECOND transposed, and two that cannot be taken."""
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"], "one"),
        helper.make_node("MatMul", ["x", "first"], ["b"], "two"),
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("Gemm", ["sum", "second", "bias"], ["g"], "three", transB=1, alpha=alpha),
        helper.make_node("MatMul", ["g", "square"], ["h"], "of two activations"),
        helper.make_node("MatMul", ["short", "thin"], ["t"], "too shallow"),
        helper.make_node("Add", ["h", "t"], ["y"], "end"),
    ]
    nodes.insert(
        0, helper.make_node("Identity", ["identity"], ["square"], "makes an activation of it")
    )
    nodes.insert(
        0, helper.make_node("Slice", ["x", "zero", "two_", "one_"], ["short"], "first two")
    )
    tensors = {
        "first": FIRST,
        "second": SECOND,
        "bias": BIAS,
        "identity": np.eye(40, dtype=np.float32),
        "thin": np.zeros((2, 40), np.float32),
        "zero": np.array([0]),
        "two_": np.array([2]),
        "one_": np.array([1]),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 40])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def quantized(model: Any, chosen: list[Matmul], scales: dict[str, float], form: Format) -> Any:
    found = {
        "first": quantize_matrix(FIRST, 1, form),
        "second": quantize_matrix(SECOND, 0, form),
    }
    matrices = {
        name: TensorProto(
            name=f"{name}.quantized",
            data_type=form.onnx_type,
            dims=matrix.values.shape,
            raw_data=matrix.values.tobytes(),
        )
        for name, matrix in found.items()
    }
    by_channel = {name: matrix.scales for name, matrix in found.items()}
    return insert_quantization(model, chosen, scales, matrices, by_channel, form)


def rounded(values: Any, scale: Any, form: Format) -> Any:
    """What quantising and dequantising makes of values, written out anew."""
    scaled = np.asarray(values) / scale
    if form is Format.INT8:
        return np.clip(np.round(scaled), -128, 127) * scale
    return np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def test_products_with_a_constant_matrix_are_found() -> None:
    one, two, three = find_matmuls(tiny_model())
    assert (one.node, one.activation, one.weight, one.axis) == ("one", "x", "first", 1)
    assert (two.node, two.bias, two.size) == ("two", "", 32 * 48)
    assert (three.node, three.axis, three.bias) == ("three", 0, "bias")
    assert [matmul.node for matmul in find_matmuls(tiny_model(alpha=2.0))] == ["one", "two"]


def test_every_channel_has_its_own_scale() -> None:
    matrix = quantize_matrix(FIRST, 1, Format.INT8)
    np.testing.assert_allclose(matrix.scales, np.abs(FIRST).max(axis=0) / 127, rtol=1e-6)
    assert (np.abs(matrix.values).max(axis=0) == 127).all()
    assert np.abs(matrix.values * matrix.scales - FIRST).max(axis=0) == pytest.approx(
        matrix.scales / 2, rel=0.2
    )
    turned = quantize_matrix(FIRST.T, 0, Format.INT8)
    np.testing.assert_array_equal(turned.values, matrix.values)


def test_a_channel_of_zeros_stays_zero() -> None:
    matrix = quantize_matrix(np.zeros((4, 2), np.float32), 1, Format.FP8)
    assert (matrix.scales == 1).all()
    assert (matrix.values.astype(np.float32) == 0).all()


def test_rounding_and_clipping() -> None:
    values = np.array([0.5, 1.5, -2.5, 126.6, 300.0, -300.0], np.float32)
    np.testing.assert_array_equal(to_format(values, Format.INT8), [0, 2, -2, 127, 127, -127])
    fp8 = to_format(np.array([1.06, 1.07, 500.0, -1e9], np.float32), Format.FP8)
    np.testing.assert_array_equal(fp8.astype(np.float32), [1.0, 1.125, 448.0, -448.0])


def test_every_matmul_has_a_matrix_of_its_own() -> None:
    model = tiny_model()
    result = quantized(model, find_matmuls(model), {"x": 0.02, "sum": 0.3}, Format.INT8)
    sources = [
        node.input[0]
        for node in result.graph.node
        if node.name.endswith("right.rounded.DequantizeLinear")
    ]
    matrices = {tensor.name: tensor.raw_data for tensor in result.graph.initializer}
    assert len(sources) == len(set(sources)) == 3
    assert matrices[sources[0]] == matrices[sources[1]] != matrices[sources[2]]


@pytest.mark.parametrize("form", list(Format))
def test_the_graph_computes_on_rounded_operands(form: Format, tmp_path: Path) -> None:
    model = tiny_model()
    onnx.checker.check_model(quantized(model, find_matmuls(model), {"x": 0.02, "sum": 0.3}, form))
    x = RNG.standard_normal((5, 32)).astype(np.float32)
    scales = {"x": 0.02, "sum": 0.3}
    # One alone, and all: what is not chosen stays in fp32.
    for chosen in (find_matmuls(model)[2:], find_matmuls(model)):
        names = {matmul.node for matmul in chosen}
        result = quantized(model, chosen, scales, form)
        session = GraphSession(INFO, result.SerializeToString(), tmp_path, form.value, threads=1)
        first = rounded(FIRST, np.abs(FIRST).max(axis=0) / form.largest, form)
        second = rounded(SECOND.T, np.abs(SECOND).max(axis=1) / form.largest, form)
        a = rounded(x, 0.02, form) @ first if "one" in names else x @ FIRST
        wanted = rounded(2 * a, 0.3, form) @ second + BIAS
        got = session.run({"x": x})["y"]
        # A sum at the edge between two roundings may fall to either side.
        assert np.median(np.abs(got - wanted)) < 1e-3 * np.abs(wanted).max()
        assert np.linalg.norm(got - wanted) < 2e-2 * np.linalg.norm(wanted)


def test_biases_stay_in_fp32_and_operands_are_not_shared() -> None:
    model = tiny_model()
    result = quantized(model, find_matmuls(model), {"x": 0.02, "sum": 0.3}, Format.INT8)
    types = {tensor.name: tensor.data_type for tensor in result.graph.initializer}
    assert types["bias"] == TensorProto.FLOAT
    assert "first" not in types
    assert types["first.quantized"] == TensorProto.INT8
    readers = [name for node in result.graph.node for name in node.input if "rounded" in name]
    assert len(readers) == len(set(readers)) == 6
    assert sum(node.op_type == "QuantizeLinear" for node in result.graph.node) == 3
    assert len(model.graph.node) == 9, "the model that was given is left as it is"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", list(Format))
def test_channels_of_vanishing_weights_become_zero(form: Format) -> None:
    matrix = np.ones((32, 3), np.float32)
    matrix[:, 1:] = [0, 1e-45]
    found = quantize_matrix(matrix, 1, form)
    restored = found.values.astype(np.float32) * found.scales
    np.testing.assert_allclose(restored, [[1, 0, 0]] * 32, rtol=1e-6)
