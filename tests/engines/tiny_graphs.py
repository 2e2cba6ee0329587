"""Graphs of a few numbers that take what the real ones take, and what they should compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from disa.engines.plan.engine_info import EngineInfo, ShapeRange
from disa.engines.plan.plan import PlanWriter
from disa.engines.plan.traits import GraphTraits, Role
from disa.engines.session import TensorSpec

CHANNELS = 4
CLASSES = 3
CONTENT = {
    "family": "mar",
    "name": "tiny",
    "precision": "fp32",
    "model": {"class_num": CLASSES, "mlp_ratio": 4.0},
    "tokens": {"count": 16, "channels": CHANNELS},
    "image": {"height": 8, "width": 8},
    "defaults": {"steps": "50:5", "guidance_scale": 2.5},
    "class_names": ["bag", "boot", "coat"],
    "source": {"file": "tiny.pth"},
}
HEAD_ENGINE = EngineInfo(
    graph="head",
    backend="tensorrt",
    version="10.16.1",
    precision="fp16",
    architectures=("sm_89", "sm_120"),
    profiles=(
        {
            "x": ShapeRange((1, CHANNELS), (8, CHANNELS), (64, CHANNELS)),
            "step": ShapeRange((1,), (8,), (64,)),
            "coefficients": ShapeRange((1, 5), (50, 5), (1000, 5)),
            "noise": ShapeRange((1, CHANNELS), (8, CHANNELS), (64, CHANNELS)),
        },
    ),
    member="engines/head.engine",
)

Arrays = Mapping[str, np.ndarray]


ONCE = GraphTraits(Role.ONCE)


@dataclass(frozen=True)
class TinyGraph:
    """An ONNX file, the content of its external data and its interface."""

    name: str
    onnx: bytes
    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    traits: GraphTraits = ONCE


class External:
    """Collects initializers whose values lie in a file beside the ONNX file."""

    def __init__(self, file_name: str) -> None:
        self.file_name = file_name
        self.data = b""

    def add(self, name: str, values: np.ndarray) -> TensorProto:
        self.data += bytes(-len(self.data) % 64)
        tensor = numpy_helper.from_array(values, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": self.file_name, "offset": len(self.data), "length": values.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.data += values.tobytes()
        return tensor


WEIGHT = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS)).astype(np.float32)
CLASS_TABLE = np.arange(CLASSES * CHANNELS, dtype=np.float32).reshape(CLASSES, CHANNELS)


def head() -> TinyGraph:
    """next_x = (x @ weight) * the sum of the step's coefficients + noise."""
    external = External("head.data")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Gather", ["coefficients", "step"], ["chosen"]),
        helper.make_node("ReduceSum", ["chosen", "last"], ["factor"], keepdims=1),
        helper.make_node("Mul", ["product", "factor"], ["scaled"]),
        helper.make_node("Add", ["scaled", "noise"], ["next_x"]),
    ]
    weights = [external.add("padding", np.ones(3, np.float32)), external.add("weight", WEIGHT)]
    constants = [*weights, numpy_helper.from_array(np.array([1]), "last")]
    inputs = (
        TensorSpec("x", "float32", ("rows", CHANNELS)),
        TensorSpec("step", "int64", ("rows",)),
        TensorSpec("coefficients", "float32", ("steps", 5)),
        TensorSpec("noise", "float32", ("rows", CHANNELS)),
    )
    outputs = (TensorSpec("next_x", "float32", ("rows", CHANNELS)),)
    model = as_model(nodes, constants, inputs, outputs)
    traits = GraphTraits(Role.STEP, split="rows")
    return TinyGraph("head", model.SerializeToString(), external.data, inputs, outputs, traits)


def expected_head(inputs: Arrays) -> np.ndarray:
    factor = inputs["coefficients"][inputs["step"]].sum(1, keepdims=True)
    return inputs["x"] @ WEIGHT * factor + inputs["noise"]


def head_loop(
    rows: int = 3, steps: int = 4, seed: int = 0
) -> tuple[dict[str, str], Arrays, Arrays, Arrays]:
    """The arguments of `Session.iterate` for the head: carry, constants, per_step, state."""
    rng = np.random.default_rng(seed)
    order = np.arange(steps, dtype=np.int64)[::-1]
    return (
        {"next_x": "x"},
        {"coefficients": rng.random((max(steps, 1), 5), np.float32)},
        {
            "step": np.ascontiguousarray(np.broadcast_to(order[:, None], (steps, rows))),
            "noise": rng.standard_normal((steps, rows, CHANNELS), np.float32),
        },
        {"x": rng.standard_normal((rows, CHANNELS), np.float32)},
    )


def expected_loop(constants: Arrays, per_step: Arrays, state: Arrays) -> np.ndarray:
    x = state["x"]
    for step, noise in zip(per_step["step"], per_step["noise"], strict=True):
        x = expected_head({**constants, "step": step, "noise": noise, "x": x})
    return x


def backbone() -> TinyGraph:
    """condition = the sum of the visible tokens + the class's row; also their number."""
    external = External("backbone.data")
    nodes = [
        helper.make_node("ReduceSum", ["tokens", "first"], ["sum"], keepdims=0),
        helper.make_node("Gather", ["table", "class_index"], ["row"]),
        helper.make_node("Add", ["row", "sum"], ["condition"]),
        helper.make_node("Shape", ["tokens"], ["visible"], start=0, end=1),
    ]
    constants = [
        external.add("table", CLASS_TABLE),
        numpy_helper.from_array(np.array([0]), "first"),
    ]
    inputs = (
        TensorSpec("tokens", "float32", ("tokens", "batch", CHANNELS)),
        TensorSpec("class_index", "int64", ("guidance", "batch")),
    )
    outputs = (
        TensorSpec("condition", "float32", ("guidance", "batch", CHANNELS)),
        TensorSpec("visible", "int64", (1,)),
    )
    model = as_model(nodes, constants, inputs, outputs)
    traits = GraphTraits(Role.ITERATION, split="batch")
    return TinyGraph("backbone", model.SerializeToString(), external.data, inputs, outputs, traits)


def shuffle() -> TinyGraph:
    """next_x = x[order], which goes wrong where next_x is written over x."""
    inputs = (
        TensorSpec("x", "float32", ("rows", CHANNELS)),
        TensorSpec("order", "int64", ("rows",)),
    )
    outputs = (TensorSpec("next_x", "float32", ("rows", CHANNELS)),)
    model = as_model([helper.make_node("Gather", ["x", "order"], ["next_x"])], [], inputs, outputs)
    traits = GraphTraits(Role.STEP, split="rows")
    return TinyGraph("shuffle", model.SerializeToString(), b"", inputs, outputs, traits)


def expected_backbone(inputs: Arrays) -> np.ndarray:
    return CLASS_TABLE[inputs["class_index"]] + inputs["tokens"].sum(0)


def as_model(
    nodes: list,
    constants: list[TensorProto],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> ModelProto:
    def infos(specs: tuple[TensorSpec, ...]) -> list:
        types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        return [helper.make_tensor_value_info(s.name, types[s.dtype], s.shape) for s in specs]

    graph = helper.make_graph(nodes, "tiny", infos(inputs), infos(outputs), constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def add_graph(writer: PlanWriter, graph: TinyGraph, folder: Path) -> None:
    """Add a graph to a plan through files, as the exporter does."""
    onnx, data = folder / f"{graph.name}.onnx", folder / f"{graph.name}.data"
    onnx.write_bytes(graph.onnx)
    data.write_bytes(graph.data)
    writer.add_graph(
        graph.name,
        onnx,
        [data] if graph.data else [],
        graph.inputs,
        graph.outputs,
        graph.traits,
    )


def write_plan(path: Path, graphs: list[TinyGraph], **content: object) -> Path:
    """A plan of some graphs; its files are made beside it."""
    with PlanWriter(path, {**CONTENT, **content}) as writer:
        for graph in graphs:
            add_graph(writer, graph, path.parent)
    return path


VECTOR = (TensorSpec("x", "float32", ("n", 4)),)
RESULT = (TensorSpec("y", "float32", ("n", 4)),)


def graph(*nodes: NodeProto, constants: list[TensorProto] | None = None) -> TinyGraph:
    """A graph named `head` from VECTOR to RESULT."""
    model = as_model(list(nodes), constants or [], VECTOR, RESULT)
    return TinyGraph("head", model.SerializeToString(), b"", VECTOR, RESULT)


INT8_DEPTH = 512


def write_int8_plan(path: Path) -> Path:
    """A plan of y = x @ w in int8, where x [n, INT8_DEPTH] and all of w [INT8_DEPTH, 4] are 127."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["w", "ones", "zeros"], ["matrix"], axis=1),
        helper.make_node("MatMul", ["rounded", "matrix"], ["y"]),
    ]
    constants = {
        "one": np.float32(1),
        "zero": np.int8(0),
        "ones": np.ones(4, np.float32),
        "zeros": np.zeros(4, np.int8),
        "w": np.full((INT8_DEPTH, 4), 127, np.int8),
    }
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    x = (TensorSpec("x", "float32", ("n", INT8_DEPTH)),)
    model = as_model(nodes, tensors, x, RESULT).SerializeToString()
    quantization = {"graphs": {"head": {"products": 1}}}
    graphs = [TinyGraph("head", model, b"", x, RESULT)]
    return write_plan(path, graphs, precision="int8", quantization=quantization)
