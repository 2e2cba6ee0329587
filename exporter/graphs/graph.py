"""A part of a model that becomes one ONNX graph, and its export to ONNX."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...engines.plan.graph_files import ExportedGraph
from ...engines.plan.traits import GraphTraits
from ...errors import DisaError
from ...optional import import_failed

OPSET = 20
Shape = tuple[int | str, ...]
Arrays = dict[str, npt.NDArray[Any]]
DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}


@dataclass(frozen=True)
class Graph:
    """A module and the shapes of its inputs and outputs.

    Attributes:
        name: name of the graph in the plan.
        module: receives the inputs in order and returns a tensor or a tuple of tensors.
        inputs: symbolic shape of each input; names are dynamic dimensions.
        outputs: symbolic shape of each output, in the module's order.
        example: inputs for given sizes of the dynamic dimensions, equal at every call.
        sizes: sizes to trace with, at least 2 and all different, so that the exporter
            takes no dimension for a constant or for another one.
        checks: further sizes to compare the exported graph at.
        traits: properties of the graph in the plan, in addition to its shapes.
        differences: outputs that are a small difference of large values, to one of which they are
            added again: their relative error says nothing where less than fp32 is computed in.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]
    example: Callable[[Mapping[str, int]], Arrays]
    sizes: Mapping[str, int]
    traits: GraphTraits
    checks: tuple[Mapping[str, int], ...] = ()
    differences: frozenset[str] = frozenset()

    def judged(self, precision: str) -> frozenset[str]:
        """The outputs whose relative error counts in a graph of this precision."""
        return frozenset(self.outputs) - (frozenset() if precision == "fp32" else self.differences)


def export_graph(graph: Graph, folder: Path) -> ExportedGraph:
    """Write `NAME.onnx` and `NAME.data` (weights as external data) into `folder`.

    Raises:
        DisaError: a dimension meant to be dynamic became a constant.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise import_failed(error, error.name or "onnx", "export") from error
    arrays = graph.example(graph.sizes)
    path = folder / f"{graph.name}.onnx"
    weights = folder / f"{graph.name}.data"
    dimensions = {
        name: {
            axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(shape) if isinstance(dim, str)
        }
        for name, shape in graph.inputs.items()
    }
    with torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(torch.from_numpy(arrays[name]) for name in graph.inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=_as_arguments(graph.module, [dimensions[n] for n in graph.inputs]),
            verbose=False,
        )
    assert program is not None
    program.save(path, external_data=True)
    written = Path(f"{path}.data")
    model = onnx.load(path, load_external_data=False)
    _name_dimensions(model.graph.input, graph.inputs, graph.name)
    _name_dimensions(model.graph.output, graph.outputs, graph.name)
    if written.exists() and not written.stat().st_size:
        written.unlink()
    if written.exists():
        written.rename(weights)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = weights.name
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:], model.metadata_props[:]
    onnx.save(model, path)
    return ExportedGraph(
        graph.name,
        path,
        (weights,) if weights.exists() else (),
        _specification(model.graph.input, graph.inputs),
        _specification(model.graph.output, graph.outputs),
    )


def _as_arguments(module: nn.Module, entries: list[Any]) -> tuple[Any, ...]:
    """One entry for each argument of a module; those of `*arguments` are joined to one."""
    parameters = list(signature(module.forward).parameters.values())
    if parameters[-1].kind is not Parameter.VAR_POSITIONAL:
        return tuple(entries)
    single = len(parameters) - 1
    return (*entries[:single], tuple(entries[single:]))


def _name_dimensions(values: Any, shapes: Mapping[str, Shape], graph: str) -> None:
    for value in values:
        found = value.type.tensor_type.shape.dim
        wanted = shapes[value.name]
        if len(found) != len(wanted):
            raise DisaError(
                f"{value.name} of the {graph} graph has rank {len(found)}, not {len(wanted)}"
            )
        for dim, want in zip(found, wanted, strict=True):
            if isinstance(want, str):
                if dim.HasField("dim_value"):
                    raise DisaError(
                        f"the dimension {want} of {value.name} in the {graph} graph was exported "
                        f"as the constant {dim.dim_value}: trace it with another size"
                    )
                dim.dim_param = want
            elif dim.dim_value != want:
                dim.Clear()
                dim.dim_value = want


def _specification(values: Any, shapes: Mapping[str, Shape]) -> tuple[tuple[str, str, Shape], ...]:
    import onnx

    names = {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.INT64: "int64",
        onnx.TensorProto.BOOL: "bool",
    }
    return tuple(
        (value.name, names[value.type.tensor_type.elem_type], shapes[value.name])
        for value in values
    )


def evaluate(graph: Graph, arrays: Mapping[str, npt.NDArray[Any]]) -> Arrays:
    """The module's results for these inputs, by output name."""
    with torch.no_grad():
        result = graph.module.eval()(*(torch.from_numpy(arrays[name]) for name in graph.inputs))
    results: tuple[Tensor, ...] = result if isinstance(result, tuple) else (result,)
    return {name: value.numpy() for name, value in zip(graph.outputs, results, strict=True)}
