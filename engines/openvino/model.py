"""Converts a plan's graph to an OpenVINO model whose weights are memory-mapped from the plan."""

import ctypes
from collections.abc import Mapping, Sequence, Set
from math import prod
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import DamagedFile, EngineError
from ..plan.onnx_file import Weight, detach
from ..plan.plan import Plan

_FEW = 1024
_SHARED_BYTES = 4096
"""Weights of at least this many bytes are shared with the plan; OpenVINO copies smaller ones."""

_EXACT, _ENDLESS = 1 << 24, (1 << 31) - 1
"""Integers up to the first are exact in fp32; integers from the second on mean "to the end"."""

_TYPES = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8e4m3",
    "float8_e5m2": "f8e5m2",
    "int8": "i8",
    "uint8": "u8",
    "int32": "i32",
    "int64": "i64",
}

_DEQUANTIZING = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose")


def read_model(openvino: ModuleType, core: Any, plan: Plan, graph: str) -> tuple[Any, list[Any]]:
    """Read the model of a graph.

    Returns:
        The model, and objects that must live as long as the model.

    Raises:
        DisaError: the graph is damaged. Exceptions of OpenVINO are not converted.
    """
    info = plan.graph(graph)
    # Weights are verified only on request: reading all of them would take as long as loading.
    plan.check_member(info.onnx)
    contents = {PurePosixPath(member).name: plan.read(member) for member in info.data}
    onnx, weights = detach(plan.read(info.onnx), contents, _SHARED_BYTES)
    model = core.read_model(onnx)
    _attach(openvino, model, weights)
    _check_integers(model)
    return model, [weight.data for weight in weights]


def _attach(openvino: ModuleType, model: Any, weights: Sequence[Weight]) -> None:
    """Attach weights to the inputs of their names."""
    parameters: Mapping[str, Any] = {
        parameter.get_friendly_name(): parameter for parameter in model.get_parameters()
    }
    for weight in weights:
        parameter = parameters.get(weight.name)
        if parameter is None:
            raise DamagedFile(f"the weight {weight.name[:80]} does not belong to its graph")
        tensor = openvino.Tensor(
            _address(weight.data),
            openvino.Shape(weight.shape),
            getattr(openvino.Type, _TYPES[weight.dtype]),
        )
        constant = openvino.op.Constant(tensor, shared_memory=True)
        parameter.output(0).replace(constant.output(0))
        model.remove_parameter(parameter)


def has_angles(model: Any) -> bool:
    """Whether a model computes sines of positions or timesteps, which are too fine for bf16."""
    return any(node.get_type_name() in ("Sin", "Cos") for node in model.get_ops())


def cast_matmuls(openvino: ModuleType, model: Any) -> None:
    """Let the matmuls of a model be computed in bf16, and nothing else.

    Those that are quantised to int8 stay so: a cast between them and their scales would hide it.
    """
    convert, types = openvino.opset15.convert, (openvino.Type.f32, openvino.Type.f16)
    for node in model.get_ordered_ops():
        result = node.get_output_element_type(0)
        if node.get_type_name() != "MatMul" or result not in types or _has_int8_matrix(node):
            continue
        for operand in node.inputs():
            rounded = convert(operand.get_source_output(), openvino.Type.bf16)
            operand.replace_source_output(rounded.output(0))
        readers = node.output(0).get_target_inputs()
        widened = convert(node.output(0), result)
        for reader in readers:
            reader.replace_source_output(widened.output(0))
    model.validate_nodes_and_infer_types()


def narrow(openvino: ModuleType, model: Any, names: Set[str]) -> None:
    """Give those inputs and outputs of a model the type bf16 that have one of these names."""
    steps = openvino.preprocess.PrePostProcessor(model)
    for ports, select in ((model.inputs, steps.input), (model.outputs, steps.output)):
        for name in (name for port in ports for name in port.get_names() & names):
            select(name).tensor().set_element_type(openvino.Type.bf16)
    steps.build()


def _has_int8_matrix(matmul: Any) -> bool:
    """Whether the right operand of a matmul is a constant of int8 with its scales."""
    node = matmul.input_value(1).get_node()
    while node.get_type_name() in _DEQUANTIZING:
        node = node.input_value(0).get_node()
    kind = node.get_element_type().get_type_name()
    return node.get_type_name() == "Constant" and kind in ("i8", "u8")


def _check_integers(model: Any) -> None:
    """Check that the graph has no integers that OpenVINO would confuse.

    OpenVINO (2026.4.1) compares integers in fp32, where large neighbouring integers are equal.

    Raises:
        DisaError: the graph has such integers.
    """
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().is_integral_number():
            if prod(node.get_output_shape(0)) > _FEW:
                continue
            sizes = np.abs(node.get_data().astype(np.float64))
            if ((sizes > _EXACT) & (sizes < _ENDLESS)).any():
                raise EngineError(
                    "a graph has integers beyond 2**24, which OpenVINO does not compare exactly: "
                    "export the checkpoint again, or use --engine cpu"
                )


def _address(data: memoryview) -> np.ndarray:
    """The bytes of a read-only view, as an array that claims to be writable.

    OpenVINO accepts only writable arrays, but does not write to constants.
    """
    start = np.frombuffer(data, np.uint8).ctypes.data
    return np.ctypeslib.as_array((ctypes.c_ubyte * len(data)).from_address(start))
