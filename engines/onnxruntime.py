"""Runs a plan's graphs with ONNX Runtime, on the CPU, on NVIDIA GPUs or through OpenVINO."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

from ..errors import DisaError, MissingDependency
from .cpu import physical_cores
from .cuda_runner import CudaRunner, loops, uncapturable
from .manifest import QUANTIZED
from .onnx_file import Extent, relocate
from .plan import Plan
from .providers import PROVIDERS, Provider, check_provider
from .runner import HostRunner, Runner
from .session import Array, check_inputs, check_loop

_FATAL = 4
_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}


class OnnxRuntimeSession:
    """A graph of a plan. Its weights are mapped from where they lie in the plan."""

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

        engine: "cpu", "cuda" or "openvino". threads: how many the host computes with, all
        physical cores if None. precision: see `providers`. prepack: lay weights out for the
        matrix kernels while loading; without it loading takes no time and no memory beyond the
        file's cache, and runs on few rows take two to three times as long. cuda_graphs: replay
        the steps of a loop as CUDA graphs on a GPU, if it can be done.
        Raises DisaError if the graph cannot be run so.
        """
        info = plan.graph(graph)
        self.inputs, self.outputs = info.inputs, info.outputs
        self._where = f"the graph {graph} of {plan.path}"
        self._precision = plan.manifest.precision_of(graph)
        self._runtime = _import()
        threads = threads or physical_cores()
        options = session_options(self._runtime, threads, prepack, self._precision)
        provider = PROVIDERS[engine].prepare(self._runtime, options, threads, precision)
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
        """See `Session.description`; tells why a loop runs without CUDA graphs where it does."""
        if isinstance(self._runner, CudaRunner) and loops(self.inputs, self.outputs):
            failed = self._runner.engine.graphs_failed
            return self._description + (f", no CUDA graphs ({failed})" if failed else "")
        return self._description

    @property
    def cuda(self) -> CudaRunner | None:
        """What runs the graph on a GPU, with what became of its steps; None on the host."""
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
        """Load a session that makes CUDA graphs, or one that does not; why it does not."""
        refused = "not asked for" if provider.capturing and not cuda_graphs else ""
        if provider.capturing and cuda_graphs and loops(self.inputs, self.outputs):
            try:
                self._session = self._load(plan, graph, options, provider.capturing)
                return uncapturable(self._session)
            except DisaError as error:
                refused = str(error)
        self._session = self._load(plan, graph, options, provider.arguments)
        return refused or "the graph is no loop"

    def _new_runner(self, graph: str, provider: Provider, refused: str) -> Runner:
        if provider.stream is None:
            return HostRunner(self._session, self.outputs)
        return CudaRunner(
            graph,
            self._session,
            self.inputs,
            self.outputs,
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
        locations = {
            PurePosixPath(member).name: Extent(plan.offset(member), len(plan.read(member)))
            for member in info.data
        }
        # Weights are checked on demand only: reading them all would take as long as loading.
        plan.check_member(info.onnx)
        model = relocate(plan.read(info.onnx), locations, file_name)
        plan.check_unchanged()
        try:
            with self._failures():
                session = self._runtime.InferenceSession(
                    model, options, enable_fallback=0, **arguments
                )
        finally:
            plan.check_unchanged()
        return session

    def _check_interface(self) -> None:
        """The graph must be what the manifest says, which all checks of inputs rely on."""
        for specs, nodes in (
            (self.inputs, self._session.get_inputs()),
            (self.outputs, self._session.get_outputs()),
        ):
            said = {spec.name: (_TYPES[spec.dtype], len(spec.shape)) for spec in specs}
            found = {node.name: (node.type, len(node.shape)) for node in nodes}
            if said != found:
                raise DisaError(
                    f"{self._where} does not have the inputs and outputs that the manifest "
                    "says: export the checkpoint again"
                )

    def _failures(self) -> AbstractContextManager[None]:
        return failures(self._runtime, self._where, self._precision)


@contextmanager
def failures(runtime: ModuleType, where: str, precision: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises into a DisaError about `where`."""
    try:
        yield
    except _exceptions(runtime) as error:
        raise DisaError(f"{where}: {_explain(str(error), precision)}") from error


def provider_runs(engine: str) -> bool:
    """Whether "cpu", "cuda" or "openvino" can be used on this machine as it is."""
    return PROVIDERS[engine].runs(_import())


def _import() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "cpu") from error
    return onnxruntime


def _exact_quantization(precision: str) -> dict[str, str]:
    """What a session needs so that it computes what a graph of this precision says.

    The CPU has no products of fp8: there the operands are rounded to fp8 and multiplied in
    fp32. Fusing that would ask for kernels that do not exist.
    """
    return {"session.disable_quant_qdq": "1"} if precision == "fp8" else {}


def _computed_in(graph: str, provider: str | None) -> str:
    """The precision of a graph's products, given what the provider would choose for them."""
    if graph in QUANTIZED:
        return f"{graph}, the rest in {provider or 'fp32'}"
    return provider or graph


def session_options(runtime: ModuleType, threads: int, prepack: bool, precision: str) -> Any:
    """Options of a session on the host for a graph of this precision."""
    options = runtime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    entries = {
        # Idle threads of one graph's session must not take the cores from the next graph's.
        "session.intra_op.spin_duration_us": "100",
        "session.record_ep_graph_assignment_info": "1",
        "session.disable_prepacking": str(int(not prepack)),
        **_exact_quantization(precision),
    }
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _run_options(runtime: ModuleType, graph: int) -> Any:
    """Options of a run that is not waited for; `graph` is the number of its CUDA graph, or -1."""
    options = runtime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _exceptions(runtime: ModuleType) -> tuple[type[BaseException], ...]:
    state = runtime.capi.onnxruntime_pybind11_state
    own = [x for x in vars(state).values() if isinstance(x, type) and issubclass(x, Exception)]
    return (*own, RuntimeError, ValueError)


def _explain(message: str, precision: str) -> str:
    if "NOT_IMPLEMENTED" in message and precision == "bf16":
        return (
            "ONNX Runtime cannot compute it in bf16 on this engine: use --engine openvino or "
            "cuda, or export with --fp32"
        )
    if any(sign in message for sign in ("allocate memory", "out of memory", "ALLOC_FAILED")):
        return "not enough memory: use a smaller --batch-size"
    lines = message.strip().splitlines() or ["no reason given"]
    return f"ONNX Runtime failed: {lines[0][:500]}"
