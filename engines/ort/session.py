"""Runs a plan's graphs with ONNX Runtime, on the CPU or on NVIDIA GPUs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

from ...errors import DamagedFile, DisaError, EngineError, OutOfMemory
from ...optional import import_failed
from ..cpu import exact_int8, physical_cores
from ..plan.manifest import QUANTIZED
from ..plan.onnx_file import relocate
from ..plan.plan import Plan
from ..plan.traits import Role
from ..session import Array, TensorSpec, check_inputs, check_loop
from .cuda_runner import CudaRunner, uncapturable
from .memory import limited_loading
from .providers import PROVIDERS, Provider, check_provider
from .runner import HostRunner, Runner

_FATAL = 4
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


class OnnxRuntimeSession:
    """A graph of a plan. Its weights are memory-mapped from the plan."""

    def __init__(
        self,
        plan: Plan,
        graph: str,
        engine: str = "cpu",
        *,
        threads: int | None = None,
        precision: str | None = None,
        prepack: bool = True,
        cuda_graphs: bool = True,
    ) -> None:
        """Load a graph.

        Args:
            engine: "cpu" or "cuda".
            threads: threads on the host; None for all physical cores.
            precision: see `providers`.
            prepack: lay weights out for the matrix kernels while loading; without it loading takes
                no time and no memory beyond the file cache, and runs on few rows take two to three
                times as long.
            cuda_graphs: replay the steps of a loop as CUDA graphs on a GPU, if possible.

        Raises:
            DisaError: the graph cannot be run in this way.
        """
        info = plan.graph(graph)
        self.inputs, self.outputs, self._traits = info.inputs, info.outputs, info.traits
        self._where = f"the graph {graph} of {plan.path}"
        self._precision = plan.manifest.precision_of(graph)
        self._runtime = _import()
        options = session_options(
            self._runtime, threads or physical_cores(), prepack, self._precision
        )
        provider = PROVIDERS[engine].prepare(self._runtime, options, precision)
        refused = self._load_first(plan, graph, options, provider, cuda_graphs)
        self._check_interface()
        self._runner = self._new_runner(graph, provider, refused)
        self._description = (
            f"ONNX Runtime {self._runtime.__version__} {provider.name} "
            f"{_computed_in(self._precision, provider.precision)}"
            f"{check_provider(provider, self._session)}"
        )

    @property
    def description(self) -> str:
        """See `Session.description`; includes the reason if a loop runs without CUDA graphs."""
        if isinstance(self._runner, CudaRunner) and self._traits.role is Role.STEP:
            failed = self._runner.engine.graphs_failed
            return self._description + (f", no CUDA graphs ({failed})" if failed else "")
        return self._description

    @property
    def cuda(self) -> CudaRunner | None:
        """The runner on a GPU, with its counters; None on the host."""
        return self._runner if isinstance(self._runner, CudaRunner) else None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        check_inputs(self.inputs, inputs)
        with self._failures():
            return self._runner.run(inputs)

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
        with self._failures():
            return self._runner.iterate(steps, carry, constants, per_step, state)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """See `Session.empty`."""
        return self._runner.empty(shape, dtype)

    def _load_first(
        self, plan: Plan, graph: str, options: Any, provider: Provider, cuda_graphs: bool
    ) -> str:
        """Load a session that makes CUDA graphs, or another one; returns why it makes none."""
        refused = "not requested" if provider.capturing and not cuda_graphs else ""
        if provider.capturing and cuda_graphs and self._traits.role is Role.STEP:
            try:
                self._session = self._load(plan, graph, options, provider.capturing)
                return uncapturable(self._session)
            except DisaError as error:
                refused = str(error)
        self._session = self._load(plan, graph, options, provider.arguments)
        return refused or "the graph is not a loop"

    def _new_runner(self, graph: str, provider: Provider, refused: str) -> Runner:
        if provider.stream is None:
            return HostRunner(self._session, self.outputs)
        return CudaRunner(
            graph,
            self._session,
            self.inputs,
            self.outputs,
            self._traits.split,
            provider.stream,
            partial(_run_options, self._runtime),
            _exceptions(self._runtime),
            refused,
        )

    def _load(self, plan: Plan, graph: str, options: Any, arguments: Mapping[str, Any]) -> Any:
        info = plan.graph(graph)
        path = os.path.realpath(plan.path)
        folder, file_name = os.path.split(path)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        # Weights are verified only on request: reading all of them would take as long as loading.
        plan.check_member(info.onnx)
        model = relocate(plan.read(info.onnx), plan.extents(info), file_name)
        plan.check_unchanged()
        try:
            with self._failures(), limited_loading():
                session = self._runtime.InferenceSession(
                    model, options, enable_fallback=0, **arguments
                )
        finally:
            plan.check_unchanged()
        return session

    def _check_interface(self) -> None:
        """Check that the graph has the inputs and outputs of the manifest."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        # ONNX Runtime may know the size of an output dimension that has a name in the plan.
        if not _fit(self.inputs, inputs, exact=True) or not _fit(
            self.outputs, outputs, exact=False
        ):
            raise DamagedFile(
                f"{self._where} does not have the inputs and outputs listed in the manifest: "
                "export the checkpoint again"
            )

    def _failures(self) -> AbstractContextManager[None]:
        return failures(self._runtime, self._where, self._precision)


def _fit(specs: Sequence[TensorSpec], nodes: Sequence[Any], exact: bool) -> bool:
    """Whether a session's tensors match the plan's; if not `exact`, names may stand for sizes."""
    actual = {node.name: node for node in nodes}
    return {spec.name for spec in specs} == actual.keys() and all(
        _TYPES[spec.dtype] == actual[spec.name].type
        and len(spec.shape) == len(actual[spec.name].shape)
        and all(
            stated == found or (not exact and isinstance(stated, str))
            for stated, found in zip(spec.shape, actual[spec.name].shape, strict=True)
        )
        for spec in specs
    )


@contextmanager
def failures(runtime: ModuleType, where: str, precision: str) -> Iterator[None]:
    """Convert exceptions of ONNX Runtime to a DisaError about `where`."""
    try:
        yield
    except _exceptions(runtime) as error:
        kind = OutOfMemory if _is_out_of_memory(str(error)) else EngineError
        raise kind(f"{where}: {_explain(str(error), precision)}") from error


def provider_runs(engine: str) -> bool:
    """Whether "cpu" or "cuda" can be used on this machine."""
    return PROVIDERS[engine].runs(_import())


def _import() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise import_failed(error, "onnxruntime", "cpu") from error
    module: ModuleType = onnxruntime
    return module


def _exact_quantization(precision: str) -> dict[str, str]:
    """Session options that make it compute exactly what a graph of this precision defines.

    The CPU has no fp8 matmuls: the operands are rounded to fp8 and multiplied in fp32. Fusing
    these nodes would need kernels that do not exist. On x86 processors without VNNI the usual
    int8 kernels saturate, see `exact_int8`; slower ones do not. With AMX the option would replace
    the fastest kernels, which are exact (ONNX Runtime 1.32.0).
    """
    if precision == "fp8":
        return {"session.disable_quant_qdq": "1"}
    if precision == "int8" and not exact_int8():
        return {"session.x64quantprecision": "1"}
    return {}


def _computed_in(graph: str, provider: str | None) -> str:
    """The precision of a graph's matmuls, given the provider's default precision."""
    if graph in QUANTIZED:
        return f"{graph}, the rest in {provider or 'fp32'}"
    return provider or graph


def session_options(runtime: ModuleType, threads: int, prepack: bool, precision: str) -> Any:
    """Session options on the host for a graph of this precision."""
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    entries = {
        # Idle threads of one session must not occupy the cores that the next session needs.
        "session.intra_op.spin_duration_us": "100",
        "session.record_ep_graph_assignment_info": "1",
        # ONNX Runtime's own format, which it would recognise, is not what `relocate` checked.
        "session.load_model_format": "ONNX",
        "session.disable_prepacking": str(int(not prepack)),
        **_exact_quantization(precision),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _run_options(runtime: ModuleType, graph: int) -> Any:
    """Options of an asynchronous run; `graph` is the number of its CUDA graph, or -1."""
    options = runtime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _exceptions(runtime: ModuleType) -> tuple[type[BaseException], ...]:
    state = runtime.capi.onnxruntime_pybind11_state
    own = [x for x in vars(state).values() if isinstance(x, type) and issubclass(x, Exception)]
    return (*own, RuntimeError, ValueError)


def _is_out_of_memory(message: str) -> bool:
    signs = (
        *("allocate memory", "out of memory", "ALLOC_FAILED", "bad_alloc"),
        "is smaller than requested bytes",
    )
    return any(sign in message for sign in signs)


def _explain(message: str, precision: str) -> str:
    if "NOT_IMPLEMENTED" in message and precision == "bf16":
        return (
            "ONNX Runtime cannot compute it in bf16 on this engine: use --engine openvino or "
            "cuda, or export with --fp32"
        )
    if "replace the existing tensor" in message and precision == "int8":
        return (
            "two matmuls share an int8 matrix, which cannot be computed exactly on this processor "
            "(it has no VNNI instructions): quantise the fp32 plan again"
        )
    if _is_out_of_memory(message):
        return "not enough memory: use a smaller --batch-size"
    lines = message.strip().splitlines() or ["no reason given"]
    return f"ONNX Runtime failed: {lines[0][:500]}"
