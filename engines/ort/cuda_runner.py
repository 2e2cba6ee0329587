"""Runs a session of ONNX Runtime on an NVIDIA GPU, in the one stream of this process.

Arrays, buffers and the loop are those of the TensorRT sessions: work is executed in the order of
the stream, and nothing waits for the GPU before an array is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...errors import DisaError
from ..gpu.array import DeviceArray, Stream
from ..gpu.loop import DeviceLoop
from ..gpu.profile import MAX_ROWS, Range
from ..gpu.split import Splitter
from ..session import DTYPES, Array, TensorSpec

PLACE = ("cuda", 0)
"""The device of arrays, in ONNX Runtime's terms."""
WARM_RUNS = 2
"""Steps of a shape that run before a capture: no memory may be allocated while capturing."""
MAX_GRAPHS = 256
"""Largest number of CUDA graphs of a session. ONNX Runtime keeps each as long as the session."""
UNCAPTURABLE = frozenset(("GatherND", "NonZero", "Unique", "Compress", "If", "Loop", "Scan"))
"""Operators whose kernels wait for the GPU, or read host memory that is freed before they are
replayed: GatherND copies sizes from a local vector, which gives wrong results without an error."""
_NO_GRAPH = -1
_UNLIMITED = 1 << 40
_NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass
class GraphCounts:
    """How the steps of loops were run, for tests and reports."""

    plain: int = 0
    captured: int = 0
    replayed: int = 0


@dataclass
class Bound:
    """A session's inputs and outputs, bound to fixed addresses."""

    binding: Any
    runs: int = 0
    graph: int = _NO_GRAPH
    options: Any = None


@dataclass
class CudaContext:
    """The shapes and addresses of the next step, like TensorRT's execution context."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    bound: Bound | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Set the shape of an input; every shape is accepted."""
        self.shapes[name] = tuple(shape)
        self.bound = None
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Set the address of an input or output."""
        self.addresses[name] = address
        self.bound = None
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input, () before it is set; of an output, derived from the inputs."""
        for spec in self.outputs:
            if spec.name == name:
                return self._output_shape(spec)
        return self.shapes.get(name, ())

    def _output_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        sizes: dict[Any, int] = {}
        for known in self.inputs:
            sizes |= zip(known.shape, self.shapes.get(known.name, ()), strict=True)
        unknown = [size for size in spec.shape if isinstance(size, str) and size not in sizes]
        if unknown:
            raise DisaError(f"the inputs of a loop do not determine {unknown[0]} of {spec}")
        return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)

    @property
    def key(self) -> Any:
        """Equal for contexts that can use the same CUDA graph."""
        return tuple(sorted(self.shapes.items())), tuple(sorted(self.addresses.items()))


class CudaEngine:
    """Enqueues steps in the stream, as CUDA graphs if their shapes occurred before.

    ONNX Runtime captures and replays: a run with a new number for `gpu_graph_id` does the work
    twice, then captures and replays it; later runs with the number only replay, whatever is bound.
    So every binding has its own number, and no step may write its own inputs.

    Attributes:
        use_graphs: whether to capture and replay; may be changed between loops.
        graphs_failed: why nothing is captured; empty if nothing prevents it.
    """

    captures_by_itself = True

    def __init__(
        self,
        session: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        stream: Stream,
        options: Callable[[int], Any],
        failures: tuple[type[BaseException], ...],
    ) -> None:
        self.session, self.inputs, self.outputs, self.stream = session, inputs, outputs, stream
        self.counts = GraphCounts()
        self.use_graphs, self.graphs_failed = False, ""
        self._options, self._failures = options, failures
        self.plain = options(_NO_GRAPH)
        self._bound: dict[Any, Bound] = {}
        self._graphs = 0

    def create_context(self, loop: bool) -> CudaContext:
        """Create a context for a loop."""
        return CudaContext(self.inputs, self.outputs)

    def enqueue(self, context: CudaContext) -> None:
        """Enqueue one execution in the stream."""
        if context.bound is None:
            context.bound = self._bound.get(context.key) or self._bind(context)
        bound = context.bound
        bound.runs += 1
        if not self.use_graphs or self.graphs_failed or bound.runs <= WARM_RUNS:
            self._run_plainly(bound)
        elif bound.graph != _NO_GRAPH:
            self.session.run_with_iobinding(bound.binding, bound.options)
            self.counts.replayed += 1
        elif self._graphs < MAX_GRAPHS:
            self._capture(bound)
        else:
            self._run_plainly(bound)

    def _run_plainly(self, bound: Bound) -> None:
        self.session.run_with_iobinding(bound.binding, self.plain)
        self.counts.plain += 1

    def _capture(self, bound: Bound) -> None:
        options = self._options(self._graphs + 1)
        try:
            with self.stream.keeping_memory():
                self.session.run_with_iobinding(bound.binding, options)
        except self._failures as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            self.graphs_failed = f"ONNX Runtime could not capture a step: {lines[0][:300]}"
            # The failure may have left the stream in recording mode.
            self.stream.device.abandon_capture(self.stream.handle)
            self._run_plainly(bound)
            return
        self._graphs += 1
        bound.graph, bound.options = self._graphs, options
        self.counts.captured += 1

    def _bind(self, context: CudaContext) -> Bound:
        binding = self.session.io_binding()
        for specs, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for spec in specs:
                shape = context.get_tensor_shape(spec.name)
                address = context.addresses[spec.name]
                bind(spec.name, *PLACE, DTYPES[spec.dtype], shape, address)
        self._bound[context.key] = Bound(binding)
        return self._bound[context.key]


class CudaRunner:
    """Implements `runner.Runner`. Inputs have been checked.

    Attributes:
        loop: runs `iterate`.
    """

    def __init__(
        self,
        graph: str,
        session: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        split: str | None,
        stream: Stream,
        options: Callable[[int], Any],
        failures: tuple[type[BaseException], ...],
        no_graphs: str = "",
    ) -> None:
        """Create the runner.

        Args:
            split: see `GraphTraits`.
            options: returns the run options for the number of a CUDA graph.
            no_graphs: why the session cannot capture; empty if it can.
        """
        self.graph, self.inputs, self.outputs, self.stream = graph, inputs, outputs, stream
        self.engine = CudaEngine(session, inputs, outputs, stream, options, failures)
        self.engine.use_graphs, self.engine.graphs_failed = not no_graphs, no_graphs
        self._captures = not no_graphs
        self.splitter = Splitter(inputs, split)
        self.ranges = {
            name: Range(0, 1, MAX_ROWS if name == split else _UNLIMITED)
            for spec in inputs
            for name in spec.shape
            if isinstance(name, str)
        }
        self.loop = DeviceLoop(self)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        binding = self.engine.session.io_binding()
        held = {name: self.stream.aligned_copy(array) for name, array in inputs.items()}
        for spec in self.inputs:
            array = held[spec.name]
            binding.bind_input(spec.name, *PLACE, DTYPES[spec.dtype], array.shape, array.address)
        for spec in self.outputs:
            binding.bind_output(spec.name, *PLACE)
        self.engine.session.run_with_iobinding(binding, self.engine.plain)
        names = (spec.name for spec in self.outputs)
        return {
            name: self._from_ort(value)
            for name, value in zip(names, binding.get_outputs(), strict=True)
        }

    def iterate(
        self,
        steps: int,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        """See `Session.iterate`."""
        fixed, changing, first = map(self.stream.local, (constants, per_step, state))
        return self.loop.run(carry, fixed, changing, first, steps)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """See `Session.empty`."""
        return self.stream.empty(shape, dtype)

    def _from_ort(self, value: Any) -> DeviceArray:
        """The array in an OrtValue."""
        dtype = np.dtype(_NUMPY[value.data_type()])
        shape = tuple(value.shape())
        array = DeviceArray(BorrowedMemory(self.stream, value), shape, dtype)
        # Captured steps continue to use the session's memory, also after it is reused.
        return self.stream.copy_of(array) if self._captures else array


class BorrowedMemory:
    """Memory of ONNX Runtime, returned to it when the last reference to this is deleted."""

    __slots__ = ("address", "stream", "value")

    def __init__(self, stream: Stream, value: Any) -> None:
        self.stream, self.value, self.address = stream, value, value.data_ptr()


def uncapturable(session: Any) -> str:
    """Why the steps of a session must not be captured; empty if they may."""
    found = UNCAPTURABLE & {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    }
    if not found:
        return ""
    return f"{', '.join(sorted(found))} of the graph cannot be replayed: export it again"
