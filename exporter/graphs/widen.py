"""Emulates bf16 arithmetic: fp32 with every result rounded to bf16."""

from pathlib import Path
from typing import Any

from .graph import OPSET


def widen_bfloat16(path: Path) -> Path:
    """Write a copy of a bf16 graph that computes in fp32 and rounds every bf16 result.

    A bf16 weight is converted by a Cast when the graph is loaded; the output of every node that
    is bf16 is rounded through bf16.

    Returns:
        The copy, beside the original, so that it uses the same external data.
    """
    import onnx

    bf16, fp32 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    graph = model.graph
    narrow = {
        value.name for value in graph.value_info if value.type.tensor_type.elem_type == bf16
    } | {tensor.name for tensor in graph.initializer if tensor.data_type == bf16}
    nodes: list[Any] = []
    for tensor in graph.initializer:
        if tensor.data_type == bf16:
            nodes.append(_cast(tensor.name, f"{tensor.name}.wide", fp32))
    for node in graph.node:
        made = [name for name in node.output if name in narrow]
        for index, name in enumerate(node.input):
            if name in narrow:
                node.input[index] = f"{name}.wide"
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == bf16:
                attribute.i = fp32
        for index, name in enumerate(node.output):
            if name in made:
                node.output[index] = f"{name}.raw"
        nodes.append(node)
        for name in made:
            nodes.append(_cast(f"{name}.raw", f"{name}.narrow", bf16))
            nodes.append(_cast(f"{name}.narrow", f"{name}.wide", fp32))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    assert any(entry.version == OPSET for entry in model.opset_import)
    target = path.with_suffix(".widened.onnx")
    onnx.save(model, target)
    return target


def _cast(source: str, result: str, to: int) -> Any:
    import onnx

    return onnx.helper.make_node("Cast", [source], [result], to=to)
