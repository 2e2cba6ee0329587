"""Ways to make of a sound plan of tiny graphs one that no engine may take."""

from pathlib import Path

from disa.engines.plan.plan import PlanWriter
from disa.engines.session import TensorSpec

from .tiny_graphs import CONTENT, RESULT, VECTOR, TinyGraph, head, write_plan


def damage_graph(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(head().onnx) + 40] ^= 1
    path.write_bytes(data)


def cut_weights(path: Path) -> None:
    """A graph whose weights begin beyond the end of what is there."""
    with PlanWriter(path, CONTENT) as writer:
        data = path.with_name("head.data")
        data.write_bytes(head().data[:-8])
        writer.add_graph("head", head().onnx, [data], head().inputs, head().outputs, head().traits)


def steal(path: Path) -> None:
    """A graph that wants another file of the machine for its weights."""
    path.with_name("secret").write_bytes(head().data)
    write_plan(
        path, [TinyGraph("head", head().onnx.replace(b"head.data", b"../secret"), b"", (), ())]
    )


def lie(path: Path) -> None:
    inputs = (*head().inputs[:-1], TensorSpec("sound", "float32", ("rows", 4)))
    write_plan(path, [TinyGraph("head", head().onnx, head().data, inputs, head().outputs)])


def swap_types(path: Path) -> None:
    inputs = (head().inputs[0], TensorSpec("step", "float32", ("rows",)), *head().inputs[2:])
    write_plan(path, [TinyGraph("head", head().onnx, head().data, inputs, head().outputs)])


def not_onnx(path: Path) -> None:
    write_plan(path, [TinyGraph("head", b"\x80" * 99, b"", VECTOR, RESULT)])


def empty(path: Path) -> None:
    write_plan(path, [TinyGraph("head", b"", b"", VECTOR, RESULT)])
