"""Runs a plan's graphs with OpenVINO on the host's processor."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np

from ...errors import DamagedFile, EngineError, InvalidRequest, OutOfMemory
from ..cpu import exact_int8, fast_bfloat16, physical_cores
from ..plan.manifest import QUANTIZED
from ..plan.plan import Plan
from ..session import Array, TensorSpec, check_inputs, check_loop
from .model import cast_matmuls, has_angles, narrow, read_model
from .package import load

_BITS = "uint16"
"""The type of arrays with the bits of bf16 numbers, which NumPy does not have."""
_DTYPES = {"float32": "f32", "int64": "i64", _BITS: "bf16"}
_HINTS = {"fp32": "f32", "bf16": "bf16"}
_PRECISIONS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "i8": "int8", "u8": "int8"}
_OUT_OF_MEMORY = ("bad_alloc", "llocate memory", "out of memory")
_TOO_LARGE = "not enough memory: use a smaller --batch-size"
_HEAVY = ("FullyConnected", "MatMul", "Convolution", "Deconvolution")
"""Types of nodes that determine the precision of a graph."""


class OpenVINOSession:
    """A graph of a plan on OpenVINO. Concurrent runs of one session are executed one by one."""

    def __init__(
        self, plan: Plan, graph: str, *, threads: int | None = None, precision: str | None = None
    ) -> None:
        """Load a graph.

        Args:
            threads: None for all physical cores.
            precision: "fp32" or "bf16". None means bf16 if the processor has bf16 matmuls and fp32
                otherwise, except for graphs that stay in fp32 (see `GraphTraits`). Matmuls that are
                quantised in the graph are computed in int8 in any case.

        Raises:
            DisaError: the graph cannot be run in this way.
        """
        if precision not in (None, *_HINTS):
            raise InvalidRequest(
                f"the engine openvino computes in fp32 or bf16, not in {precision}"
            )
        info = plan.graph(graph)
        self.inputs, self.outputs = info.inputs, info.outputs
        self._where = f"the graph {graph} of {plan.path}"
        of_graph = plan.manifest.precision_of(graph)
        if of_graph == "int8" and not exact_int8():
            raise EngineError(
                f"{self._where}: OpenVINO's sums of int8 products overflow on this processor, "
                "which has no VNNI instructions: use --engine cpu"
            )
        self._openvino = load()
        wanted = precision or ("bf16" if fast_bfloat16() else "fp32")
        wanted = "fp32" if info.traits.always_fp32 else wanted
        hint = wanted
        with self._failures():
            core = self._openvino.Core()
            model, self._weights = read_model(self._openvino, core, plan, graph)
            if wanted == "bf16":
                if has_angles(model):
                    cast_matmuls(self._openvino, model)
                    hint = "fp32"
                self._narrow_caches(plan.manifest.cache_tensors(graph), model)
            settings = _settings(_HINTS[hint], threads or physical_cores())
            self._model = core.compile_model(model, "CPU", settings)
            self._request = self._model.create_infer_request()
        self._check_interface()
        computed_in = self._check_precision(wanted, of_graph)
        if of_graph in QUANTIZED:
            computed_in = f"{of_graph}, the rest in {wanted}"
        version = self._openvino.get_version().partition("-")[0]
        self.description = f"OpenVINO {version} CPU {computed_in}"
        self._lock = Lock()

    def _narrow_caches(self, caches: Set[str], model: Any) -> None:
        """Keep the caches of a cached backbone in bf16, in which they are computed.

        OpenVINO would convert them in every pass, and compute in fp32 whatever leads to an output
        in fp32, which the rest of the pass reads too.
        """
        if caches:
            narrow(self._openvino, model, caches)
            self.inputs, self.outputs = (
                tuple(replace(s, dtype=_BITS) if s.name in caches else s for s in specs)
                for specs in (self.inputs, self.outputs)
            )

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`. The caches of a cached backbone are the bits of bf16 numbers."""
        check_inputs(self.inputs, inputs)
        with self._lock, self._failures():
            shared = {name: _shareable(values) for name, values in inputs.items()}
            for name, values in shared.items():
                self._set(name, values)
            self._request.infer()
            return {spec.name: self._output(spec.name).copy() for spec in self.outputs}

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        steps = check_loop(self, carry, constants, per_step, state)
        if not steps:
            return {output: state[taken] for output, taken in carry.items()}
        carried = {name: np.array(values, order="C") for name, values in state.items()}
        fixed = {name: _shareable(values) for name, values in constants.items()} | carried
        moving = {name: _shareable(values) for name, values in per_step.items()}
        with self._lock, self._failures():
            for name, values in fixed.items():
                self._set(name, values)
            for step in range(steps):
                for name, values in moving.items():
                    self._set(name, values[step])
                self._request.infer()
                if step < steps - 1:
                    for output, taken in carry.items():
                        np.copyto(carried[taken], self._output(output))
            return {spec.name: self._output(spec.name).copy() for spec in self.outputs}

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """See `Session.empty`."""
        return np.empty(shape, dtype)

    def _set(self, name: str, values: np.ndarray) -> None:
        """Set an input without a copy; `values` must live until the run is over."""
        if values.dtype == _BITS:
            shape = self._openvino.Shape(values.shape)
            tensor = self._openvino.Tensor(values, shape, self._openvino.Type.bf16)
        else:
            tensor = self._openvino.Tensor(values, shared_memory=True)
        self._request.set_tensor(name, tensor)

    def _output(self, name: str) -> np.ndarray:
        tensor = self._request.get_tensor(name)
        values: np.ndarray = tensor.data
        return values.view(_BITS) if tensor.element_type == self._openvino.Type.bf16 else values

    def _check_interface(self) -> None:
        """Check that the graph has the inputs and outputs of the manifest."""
        for specs, ports in (
            (self.inputs, self._model.inputs),
            (self.outputs, self._model.outputs),
        ):
            if len(specs) != len(ports) or not all(
                any(_is_port_of(spec, port) for port in ports) for spec in specs
            ):
                raise DamagedFile(
                    f"{self._where} does not have the inputs and outputs listed in the manifest: "
                    "export the checkpoint again"
                )

    def _check_precision(self, wanted: str, of_graph: str) -> str:
        """The precision of the matmuls.

        Matmuls may have the graph's own precision if that is lower than `wanted`, and some of a
        quantised graph must.

        Raises:
            DisaError: the compiled model has another precision than requested.
        """
        precisions = {_PRECISIONS.get(name, name) for name in self.matmuls()}
        allowed = {wanted, of_graph} if of_graph != "fp32" else {wanted}
        missing = of_graph == "int8" and "int8" not in precisions
        if precisions - allowed or missing:
            raise EngineError(
                f"{self._where}: OpenVINO computes in {' and '.join(sorted(precisions))} here, not "
                f"in {' and '.join(sorted(allowed))}: use --engine cpu"
            )
        return " and ".join(sorted(precisions)) or wanted

    def matmuls(self) -> Counter[str]:
        """The number of matmuls and convolutions in each precision, such as "i8"."""
        found: Counter[str] = Counter()
        with self._failures():
            for node in self._model.get_runtime_model().get_ops():
                told = node.get_rt_info()
                if told["layerType"].value in _HEAVY:
                    found[str(told["runtimePrecision"].value)] += 1
        return found

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except MemoryError as error:
            raise OutOfMemory(f"{self._where}: {_TOO_LARGE}") from error
        except (RuntimeError, TypeError, ValueError) as error:
            if any(sign in str(error) for sign in _OUT_OF_MEMORY):
                raise OutOfMemory(f"{self._where}: {_TOO_LARGE}") from error
            raise EngineError(f"{self._where}: {_explain(str(error))}") from error


def _settings(hint: str, threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # Several processes would be pinned to the same cores.
        "ENABLE_CPU_PINNING": False,
        # The kernel cache confuses kernels: fused attention over one token leaves a kernel that is
        # later used for as many tokens as a head has channels, with wrong results (2026.4.1).
        "CPU_RUNTIME_CACHE_CAPACITY": "0",
        # Quantisation is defined by the graph.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }


def _is_port_of(spec: TensorSpec, port: Any) -> bool:
    sizes = list(port.get_partial_shape())
    return (
        spec.name in port.get_names()
        and port.get_element_type().get_type_name() == _DTYPES[spec.dtype]
        and len(sizes) == len(spec.shape)
        and all(
            size.is_dynamic or isinstance(stated, str) or size.get_length() == stated
            for size, stated in zip(sizes, spec.shape, strict=True)
        )
    )


def _shareable(values: Array) -> np.ndarray:
    """The array, or a copy if OpenVINO cannot read its memory directly."""
    array = np.ascontiguousarray(values)
    return array if array.flags.writeable else array.copy()


def _explain(message: str) -> str:
    lines = [line for line in message.splitlines() if line and not line.startswith("Exception")]
    return f"OpenVINO failed: {(lines or ['no reason given'])[-1][:500]}"
