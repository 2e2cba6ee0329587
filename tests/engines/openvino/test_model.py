"""Matmuls in bf16 beside operations that need fp32; processors without bf16 can check it too."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from onnx import helper, numpy_helper

from disa.engines.openvino.model import cast_matmuls, has_angles, narrow, read_model
from disa.engines.plan.plan import Plan

from ..tiny_graphs import graph, write_int8_plan, write_plan

WEIGHT = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")


def model_of(path: Path) -> tuple[Any, list[Any]]:
    with Plan.open(path) as plan:
        return read_model(openvino, openvino.Core(), plan, "head")


def matmuls(model: Any) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]


def operand_types(node: Any) -> list[str]:
    return [value.get_element_type().get_type_name() for value in node.input_values()]


@pytest.mark.parametrize("operation", ["Sin", "Cos", "Tanh"])
def test_sines_and_cosines_are_angles(operation: str, tmp_path: Path) -> None:
    nodes = [helper.make_node(operation, ["x"], ["y"])]
    model, _ = model_of(write_plan(tmp_path / "a.plan", [graph(*nodes)]))
    assert has_angles(model) == (operation != "Tanh")


def test_only_matmuls_are_cast(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sin", ["x"], ["sine"]),
        helper.make_node("MatMul", ["sine", "weight"], ["product"]),
        helper.make_node("Tanh", ["product"], ["y"]),
    ]
    path = write_plan(tmp_path / "a.plan", [graph(*nodes, constants=[WEIGHT])])
    model, _kept = model_of(path)
    cast_matmuls(openvino, model)
    [matmul] = matmuls(model)
    assert operand_types(matmul) == ["bf16", "bf16"]
    others = [n for n in model.get_ordered_ops() if n.get_type_name() in ("Sin", "Tanh", "Result")]
    assert [operand_types(node) for node in others] == [["f32"]] * 3


def test_matmuls_in_int8_stay_so(tmp_path: Path) -> None:
    model, _kept = model_of(write_int8_plan(tmp_path / "a.plan"))
    cast_matmuls(openvino, model)
    assert [operand_types(node) for node in matmuls(model)] == [["f32", "f32"]]


def test_inputs_and_outputs_can_be_the_bits_of_bfloat16(tmp_path: Path) -> None:
    """The bits of bf16 are the upper half of those of fp32, so that small whole numbers stay."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    model, _kept = model_of(write_plan(tmp_path / "a.plan", [graph(*nodes)]))
    values = np.arange(4, dtype=np.float32)[None]
    narrow(openvino, model, {"y", "unknown"})
    assert ports_of(model) == [({"x"}, "f32"), ({"y"}, "bf16")]
    request = openvino.compile_model(model, "CPU").create_infer_request()
    request.set_tensor("x", openvino.Tensor(values))
    request.infer()
    found = request.get_tensor("y").data.view(np.uint16).astype(np.uint32) << 16
    assert found.view(np.float32).tolist() == [[0, 2, 4, 6]]
    narrow(openvino, model, {"x"})
    assert ports_of(model) == [({"x"}, "bf16"), ({"y"}, "bf16")]


def ports_of(model: Any) -> list[tuple[set[str], str]]:
    """Names and types of the inputs and outputs."""
    ports = (*model.inputs, *model.outputs)
    return [(port.get_names(), port.get_element_type().get_type_name()) for port in ports]
