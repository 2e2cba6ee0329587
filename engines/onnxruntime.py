"""Runs a plan's graphs with ONNX Runtime, on the CPU, on NVIDIA GPUs or through OpenVINO."""

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from ..errors import DisaError, MissingDependency
from .onnx_file import Extent, relocate
from .plan import Plan
from .session import DTYPES, Array, TensorSpec, iterate_by_run


class OnnxRuntimeSession:
    """A graph of a plan on the CPU. Weights are used where they lie in the plan."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    description: str

    def __init__(self, plan: Plan, graph: str, threads: int | None = None) -> None:
        info = plan.graph(graph)
        self.inputs, self.outputs = info.inputs, info.outputs
        runtime = _import()
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        path = os.path.realpath(plan.path)
        folder, file_name = os.path.split(path)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        locations = {
            PurePosixPath(member).name: Extent(plan.offset(member), len(plan.read(member)))
            for member in info.data
        }
        model = relocate(plan.read(info.onnx), locations, file_name)
        self._session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.description = (
            f"ONNX Runtime {runtime.__version__} CPUExecutionProvider {plan.manifest.precision}"
        )
        self._names = [spec.name for spec in self.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._session.run(self._names, self._checked(inputs))
        return dict(zip(self._names, outputs, strict=True))

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        return iterate_by_run(self, carry, constants, per_step, state)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def _checked(self, inputs: Mapping[str, Array]) -> dict[str, np.ndarray]:
        if inputs.keys() != {spec.name for spec in self.inputs}:
            raise DisaError(
                f"the graph takes {', '.join(map(str, self.inputs))} and was given "
                f"{', '.join(inputs)}"
            )
        return {
            spec.name: np.ascontiguousarray(inputs[spec.name], DTYPES[spec.dtype])
            for spec in self.inputs
        }


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "cpu") from error
    return onnxruntime
