"""Runs a session of ONNX Runtime on an NVIDIA GPU, in the one stream of this process.

Arrays, buffers and the loop are those of the TensorRT sessions: everything that is put into the
stream is done in order, and nothing waits for the GPU before an array is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import DisaError
from .gpu.array import DeviceArray, Stream
from .gpu.loop import Loop
from .gpu.profile import MAX_ROWS, Range
from .gpu.split import Splitter
from .session import DTYPES, Array, TensorSpec

PLACE = ("cuda", 0)
"""Where arrays are, in the words of ONNX Runtime."""
WARM_RUNS = 2
"""Steps of a shape that run plainly first: no memory may be allocated while capturing."""
MAX_GRAPHS = 256
"""CUDA graphs of a session. ONNX Runtime keeps each as long as the session."""
UNCAPTURABLE = frozenset(("GatherND", "NonZero", "Unique", "Compress", "If", "Loop", "Scan"))
"""Operators whose kernels wait for the GPU, or read memory of the host that is gone when they are
replayed: GatherND copies sizes from a local vector, which goes wrong without an error."""
_NO_GRAPH = -1
_UNLIMITED = 1 << 40
_NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass
class GraphCounts:
    """What became of the steps of loops, for tests and reports."""

    plain: int = 0
    captured: int = 0
    replayed: int = 0


@dataclass
class Bound:
    """A session's inputs and outputs at fixed addresses."""

    binding: Any
    runs: int = 0
    graph: int = _NO_GRAPH
    options: Any = None


@dataclass
class CudaContext:
    """The shapes and addresses of the next step; what TensorRT calls an execution context."""

    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    addresses: dict[str, int] = field(default_factory=dict)
    bound: Bound | None = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        """Give an input its shape; every shape is taken."""
        self.shapes[name] = tuple(shape)
        self.bound = None
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        """Say where an input or output is."""
        self.addresses[name] = address
        self.bound = None
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """The shape of an input, () before it has one; of an output, from those of the inputs."""
        for spec in self.outputs:
            if spec.name == name:
                return self._output_shape(spec)
        return self.shapes.get(name, ())

    def _output_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        sizes: dict[Any, int] = {}
        for given in self.inputs:
            sizes |= zip(given.shape, self.shapes.get(given.name, ()), strict=True)
        unknown = [size for size in spec.shape if isinstance(size, str) and size not in sizes]
        if unknown:
            raise DisaError(f"the inputs of a loop do not tell how large {unknown[0]} of {spec} is")
        return tuple(size if isinstance(size, int) else sizes[size] for size in spec.shape)

    @property
    def key(self) -> Any:
        """Equal where one CUDA graph will do."""
        return tuple(sorted(self.shapes.items())), tuple(sorted(self.addresses.items()))


class CudaEngine:
    """Puts steps into the stream, each as a CUDA graph where its shapes came before.

    ONNX Runtime captures and replays: a run with a new number for `gpu_graph_id` does the work
    twice, then captures it and replays that; later runs with the number replay only, whatever
    is bound. So every binding has a number of its own, and no step may write what it reads.

    Attributes:
        use_graphs: whether to capture and replay; may be changed between loops.
        graphs_failed: why nothing is captured; empty if nothing stands against it.
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
        """A context for a loop."""
        return CudaContext(self.inputs, self.outputs)

    def enqueue(self, context: CudaContext) -> None:
        """Put one execution into the stream."""
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
            self.session.run_with_iobinding(bound.binding, options)
        except self._failures as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            self.graphs_failed = f"ONNX Runtime could not capture a step: {lines[0][:300]}"
            # What broke may have left the stream recording.
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
    """See `runner.Runner`. Inputs have been checked.

    Attributes:
        loop: what `iterate` runs.
    """

    def __init__(
        self,
        graph: str,
        session: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        stream: Stream,
        options: Callable[[int], Any],
        failures: tuple[type[BaseException], ...],
        no_graphs: str = "",
    ) -> None:
        """options: those of a run with a number for its CUDA graph. no_graphs: why the session
        cannot capture; empty if it can."""
        self.graph, self.inputs, self.outputs, self.stream = graph, inputs, outputs, stream
        self.engine = CudaEngine(session, inputs, outputs, stream, options, failures)
        self.engine.use_graphs, self.engine.graphs_failed = not no_graphs, no_graphs
        self._captures = not no_graphs
        self.splitter = Splitter(inputs)
        self.ranges = {
            name: Range(0, 1, MAX_ROWS if name == "rows" else _UNLIMITED)
            for spec in inputs
            for name in spec.shape
            if isinstance(name, str)
        }
        self.loop = Loop(self)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `Session.run`."""
        binding = self.engine.session.io_binding()
        held = {name: self.stream.bring(array) for name, array in inputs.items()}
        for spec in self.inputs:
            array = held[spec.name]
            binding.bind_input(spec.name, *PLACE, DTYPES[spec.dtype], array.shape, array.address)
        for spec in self.outputs:
            binding.bind_output(spec.name, *PLACE)
        self.engine.session.run_with_iobinding(binding, self.engine.plain)
        names = (spec.name for spec in self.outputs)
        return {
            name: self._taken(value)
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
        fixed, changing, first = map(self.stream.sort_out, (constants, per_step, state))
        return self.loop.run(carry, fixed, changing, first, steps)

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """See `Session.empty`."""
        return self.stream.empty(shape, dtype)

    def _taken(self, value: Any) -> DeviceArray:
        """The array in an OrtValue."""
        dtype = np.dtype(_NUMPY[value.data_type()])
        shape = tuple(value.shape())
        array = DeviceArray(Lent(self.stream, value), shape, dtype)
        # Captured steps go on using the session's own memory, wherever it is handed out again.
        return self.stream.copy_of(array) if self._captures else array


class Lent:
    """Memory of ONNX Runtime, which takes it back when nobody holds this any more."""

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


def loops(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether an output could be carried to an input, so that the graph may be run as a loop."""
    kinds = {(spec.dtype, spec.shape) for spec in inputs}
    return any((spec.dtype, spec.shape) in kinds for spec in outputs)
