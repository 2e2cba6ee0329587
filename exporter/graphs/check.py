"""Compares an exported graph with its fp32 module."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ...engines.plan.graph_files import ExportedGraph
from ...engines.plan.manifest import QUANTIZED
from ...errors import DisaError
from ...optional import import_failed
from ...relative_error import relative_error
from .graph import Arrays, Graph, evaluate
from .precision import Precision
from .widen import widen_bfloat16

TOLERANCES: Mapping[str, float] = {
    Precision.FP32: 1e-4,
    Precision.FP16: 1e-2,
    Precision.BF16: 5e-2,
    # Inputs of a comparison are synthetic and partly beyond the ranges of the calibration.
    **dict.fromkeys(QUANTIZED, 2e-1),
}


@dataclass(frozen=True)
class ModuleReference:
    """Inputs of a graph and the results of the fp32 module."""

    sizes: Mapping[str, int]
    inputs: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class GraphError:
    """The error of a graph against its fp32 module, for given sizes.

    Attributes:
        relative: largest relative L2 error over the outputs.
    """

    graph: str
    sizes: Mapping[str, int]
    relative: float


def references(graph: Graph) -> list[ModuleReference]:
    """fp32 results of the graph's module at its sizes, smallest and largest included."""
    found = []
    for sizes in (graph.sizes, *graph.checks):
        inputs = graph.example(sizes)
        found.append(ModuleReference(sizes, inputs, evaluate(graph, inputs)))
    return found


def check_graph(
    exported: ExportedGraph,
    expected: list[ModuleReference],
    precision: Precision,
    judged: Collection[str],
) -> list[GraphError]:
    """Run the ONNX file in ONNX Runtime on the CPU and compare the outputs named `judged`.

    ONNX Runtime has no bf16 matmuls on the CPU: a bf16 graph is run in fp32 with every intermediate
    rounded to bf16.
    """
    session = _session(exported, precision)
    names = [name for name, _, _ in exported.outputs]
    errors = []
    for reference in expected:
        results = dict(zip(names, session.run(names, reference.inputs), strict=True))
        relative = max(relative_error(results[name], reference.outputs[name]) for name in judged)
        errors.append(GraphError(exported.name, reference.sizes, relative))
    return errors


def enforce(errors: list[GraphError], tolerance: float) -> None:
    """Check that all graphs are within the tolerance.

    Raises:
        DisaError: a graph exceeds it.
    """
    worst = max(errors, key=lambda error: error.relative)
    if not worst.relative <= tolerance:
        at = ", ".join(f"{name} {size}" for name, size in worst.sizes.items())
        raise DisaError(
            f"the {worst.graph} graph differs from the fp32 model by {worst.relative:.1e} "
            f"(relative, at {at}), but {tolerance:.0e} is allowed: export with a higher precision, "
            "or raise --tolerance if this error is acceptable"
        )


def _session(exported: ExportedGraph, precision: Precision) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise import_failed(error, "onnxruntime", "cpu") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    path = exported.onnx
    if precision is Precision.BF16:
        path = widen_bfloat16(path)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
