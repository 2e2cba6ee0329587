"""Compares an exported graph with the fp32 module it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.manifest import QUANTIZED
from ..errors import DisaError, MissingDependency
from .graph import Arrays, ExportedGraph, Graph, evaluate
from .precision import Precision
from .widen import widen_bfloat16

TOLERANCES: Mapping[str, float] = {
    Precision.FP32: 1e-4,
    Precision.FP16: 1e-2,
    Precision.BF16: 5e-2,
    # Inputs of a comparison are made up, and lie partly beyond the ranges that were measured.
    **dict.fromkeys(QUANTIZED, 2e-1),
}


@dataclass(frozen=True)
class Reference:
    """Inputs of a graph and what the fp32 module makes of them."""

    sizes: Mapping[str, int]
    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class GraphError:
    """How far a graph is from its fp32 module at given sizes.

    Attributes:
        relative: largest relative L2 error over the outputs.
    """

    graph: str
    sizes: Mapping[str, int]
    relative: float


def references(graph: Graph) -> list[Reference]:
    """fp32 results of the graph's module at its sizes, smallest and largest included."""
    found = []
    for sizes in (graph.sizes, *graph.checks):
        inputs = graph.example(sizes)
        found.append(Reference(sizes, inputs, evaluate(graph, inputs)))
    return found


def check_graph(
    exported: ExportedGraph, expected: list[Reference], precision: Precision
) -> list[GraphError]:
    """Run the ONNX file in ONNX Runtime on the CPU and compare.

    ONNX Runtime multiplies no bf16 on the CPU: there a bf16 graph is run in fp32 with every
    intermediate rounded to bf16.
    """
    session = _session(exported, precision)
    names = [name for name, _, _ in exported.outputs]
    errors = []
    for reference in expected:
        results = dict(zip(names, session.run(names, reference.inputs), strict=True))
        relative = max(relative_error(results[name], reference.outputs[name]) for name in names)
        errors.append(GraphError(exported.name, reference.sizes, relative))
    return errors


def relative_error(got: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float:
    """L2 norm of the difference over the L2 norm of `want`; infinite if not finite."""
    difference = np.linalg.norm(got.astype(np.float64) - want.astype(np.float64))
    error = float(difference / (np.linalg.norm(want.astype(np.float64)) or 1.0))
    return error if np.isfinite(error) else float("inf")


def enforce(errors: list[GraphError], tolerance: float) -> None:
    """Raise DisaError if a graph is beyond the tolerance."""
    worst = max(errors, key=lambda error: error.relative)
    if not worst.relative <= tolerance:
        at = ", ".join(f"{name} {size}" for name, size in worst.sizes.items())
        raise DisaError(
            f"the {worst.graph} graph differs from the fp32 model by {worst.relative:.1e} "
            f"(relative, at {at}), and {tolerance:.0e} is allowed: export with a higher precision, "
            "or raise --tolerance if that is what you want"
        )


def _session(exported: ExportedGraph, precision: Precision) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "cpu") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    path = exported.onnx
    if precision is Precision.BF16:
        path = widen_bfloat16(path)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
