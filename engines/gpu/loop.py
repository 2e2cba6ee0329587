"""Runs the denoising steps of one AR iteration on the device, without the host in between."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ...errors import DisaError, EngineError
from ...recent import Recent
from ..session import DTYPES, Array, TensorSpec
from .array import Buffer, DeviceArray, Stream, move_block
from .layout import Layout, Slot, Tensor, lay_out
from .profile import Piece, Range, check_sizes, pieces, sizes_of
from .split import Splitter

TABLE = "steps"
"""Dimension of the tables of timesteps. Rows beyond the steps in use are never read, so tables
are padded, and only a few table sizes need CUDA graphs and contexts."""
TABLE_STEP = 64
LEAST_MEMORY = 4 << 20
MAX_CONTEXTS = 64
MAX_GRAPHS = 512


class Steps(Protocol):
    """An engine that runs one step: a TensorRT engine or a session of ONNX Runtime."""

    @property
    def captures_by_itself(self) -> bool:
        """Whether the engine makes CUDA graphs of steps itself, which need constant addresses."""
        ...

    def create_context(self, loop: bool) -> Any:
        """Create an object that holds shapes and addresses, like TensorRT's execution context."""
        ...

    def enqueue(self, context: Any) -> None:
        """Enqueue one step in the stream."""
        ...


class Looped(Protocol):
    """The signature of a graph that runs as a loop."""

    @property
    def graph(self) -> str: ...
    @property
    def inputs(self) -> Sequence[TensorSpec]: ...
    @property
    def outputs(self) -> Sequence[TensorSpec]: ...
    @property
    def ranges(self) -> Mapping[str, Range]: ...
    @property
    def splitter(self) -> Splitter: ...
    @property
    def stream(self) -> Stream: ...
    @property
    def engine(self) -> Steps: ...


@dataclass
class Recording:
    """A loop with certain shapes and steps: its number of runs, and its CUDA graph if any."""

    runs: int = 0
    graph: Any = None


@dataclass
class Context:
    """An execution context and the addresses that were set last."""

    handle: Any
    addresses: dict[str, int] = field(default_factory=dict)


@dataclass
class Counts:
    """Counters of a loop, for tests and reports."""

    launched: int = 0
    """Launches of CUDA graphs."""
    captured: int = 0
    enqueued: int = 0
    """Steps that were enqueued one by one."""


@dataclass(frozen=True)
class Call:
    """The arrays of one call, and the mapping from outputs to inputs."""

    carry: Mapping[str, str]
    constants: Mapping[str, Any]
    per_step: Mapping[str, Any]
    state: Mapping[str, Any]
    steps: int

    @property
    def arrays(self) -> dict[str, Any]:
        """All arrays by name."""
        return {**self.constants, **self.per_step, **self.state}


@dataclass(frozen=True)
class Run:
    """A part of a call whose memory is laid out and filled."""

    call: Call
    layout: Layout
    base: int
    """Address of the memory."""
    context: Context
    key: Any
    """Equal for runs that can use the same CUDA graph."""


class DeviceLoop:
    """Runs a graph repeatedly, with its state on the device.

    If the engine does not make CUDA graphs itself, all steps are captured as one graph when the
    same shapes and number of steps occur for the second time, and the graph is replayed from then
    on. The loop owns its memory, so addresses do not change and a graph stays valid. The first
    time, steps are enqueued one by one, so that a single request does not pay for capturing.

    Attributes:
        use_graphs: whether to capture. Must not be set to True if the engine captures itself.
        graphs_failed: why capturing failed; empty if it did not fail.
        counts: counters of the calls so far.
    """

    def __init__(self, session: Looped) -> None:
        self.session = session
        self.stream = session.stream
        self.counts = Counts()
        self.graphs_failed = ""
        self.use_graphs = not session.engine.captures_by_itself
        # An engine that captures itself captures again whenever an address changes, so tensors
        # are copied to constant addresses.
        self._fixed_addresses = session.engine.captures_by_itself
        self._contexts: Recent[Context] = Recent(MAX_CONTEXTS, self._retire)
        self._recordings: Recent[Recording] = Recent(MAX_GRAPHS, self._forget)
        self._memory: Buffer | None = None

    def run(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Any],
        per_step: Mapping[str, Any],
        state: Mapping[str, Any],
        steps: int,
    ) -> dict[str, Array]:
        """See `Session.iterate`; host arrays must be contiguous, and all inputs must be checked."""
        if steps == 0:
            return {output: state[taken] for output, taken in carry.items()}
        call = Call(carry, constants, per_step, state, steps)
        shapes = {name: tuple(array.shape) for name, array in call.arrays.items()}
        shapes |= {name: tuple(array.shape[1:]) for name, array in per_step.items()}
        session = self.session
        sizes = sizes_of(session.inputs, shapes)
        name = session.splitter.name
        check_sizes(session.graph, sizes, session.ranges, name)
        results: dict[str, Array] = {}
        parts: list[Piece | None] = [None]
        if name is not None:
            parts = [*pieces(sizes[name], session.ranges[name], ladder=True)]
        for part in parts:
            run = self._prepare(call, sizes, part)
            self._run_steps(run)
            self._copy_out(run, part, sizes.get(str(name), 0), results)
        return results

    def _prepare(self, call: Call, sizes: Mapping[str, int], part: Piece | None) -> Run:
        shapes = self._padded(sizes, part)
        context = self._context(shapes)
        layout = self._lay_out(call, shapes, context)
        self._reserve(layout.size)
        assert self._memory is not None
        on_host = tuple(name for name, array in call.arrays.items() if not _on_device(array))
        key = (call.steps, on_host, tuple(call.carry.items()), tuple(shapes.items()))
        run = Run(call, layout, self._memory.address, context, key)
        self._upload(run, part)
        for spec in self.session.inputs:
            if _on_device(call.arrays[spec.name]):
                self._copy_in(run, spec, part)
        return run

    def _padded(self, sizes: Mapping[str, int], part: Piece | None) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs for the engine, padding included."""
        padded, split = dict(sizes), self.session.splitter.name
        if split is not None and part is not None:
            padded[split] = part.size
        apart = not any({TABLE, split} <= set(spec.shape) for spec in self.session.inputs)
        if TABLE in padded and apart:
            most = self.session.ranges[TABLE].maximum
            padded[TABLE] = min(-(-padded[TABLE] // TABLE_STEP) * TABLE_STEP, most)
        return {
            spec.name: tuple(d if isinstance(d, int) else padded[d] for d in spec.shape)
            for spec in self.session.inputs
        }

    def _context(self, shapes: Mapping[str, tuple[int, ...]]) -> Context:
        """A context with these shapes. A context that a graph was captured from is not changed."""
        key = tuple(shapes.items()) if self.use_graphs else None
        context = self._contexts.get(
            key, lambda: Context(self.session.engine.create_context(loop=True))
        )
        for name, shape in shapes.items():
            known = tuple(context.handle.get_tensor_shape(name)) == shape
            if not known and not context.handle.set_input_shape(name, shape):
                raise EngineError(f"the engine does not accept {name} of shape {list(shape)}")
        return context

    def _lay_out(
        self, call: Call, shapes: Mapping[str, tuple[int, ...]], context: Context
    ) -> Layout:
        types = {spec.name: np.dtype(DTYPES[spec.dtype]) for spec in self.session.inputs}

        def tensors(arrays: Mapping[str, Any]) -> list[Tensor]:
            return [Tensor(n, shapes[n], types[n], not _on_device(a)) for n, a in arrays.items()]

        others = []
        for spec in self.session.outputs:
            if spec.name not in call.carry:
                shape = tuple(context.handle.get_tensor_shape(spec.name))
                others.append(Tensor(spec.name, shape, np.dtype(DTYPES[spec.dtype])))
        return lay_out(
            call.steps, tensors(call.per_step), tensors(call.constants), tensors(call.state), others
        )

    def _reserve(self, size: int) -> None:
        if self._memory is None or self._memory.size < size:
            # Graphs contain addresses in the old memory, which is freed before new memory is
            # allocated.
            self._drop_graphs()
            self._memory = None
            self._memory = Buffer(self.stream, max(LEAST_MEMORY, 1 << (size - 1).bit_length()))

    def _upload(self, run: Run, part: Piece | None) -> None:
        """Upload the inputs from the host, for all steps at once."""
        start, end = run.layout.host
        if start == end:
            return
        with self.stream.staging(run.base + start, end - start) as block:
            for spec in self.session.inputs:
                array = run.call.arrays[spec.name]
                if not _on_device(array):
                    view = _slot(run.layout, spec.name).view(block, start, run.layout.steps)
                    source = self.session.splitter.cut_host(spec, array, part)
                    if view.shape != source.shape:
                        view[...] = 0
                    view[tuple(map(slice, source.shape))] = source

    def _copy_in(self, run: Run, spec: TensorSpec, part: Piece | None) -> None:
        """Copy a tensor that is already on the device."""
        array = run.call.arrays[spec.name]
        slot = _slot(run.layout, spec.name)
        axis = self.session.splitter.axis(spec)
        start, along = (0, 0) if axis is None or part is None else (part.start, axis)
        for step in range(run.layout.steps if slot.stride else 1):
            source = array[step] if slot.stride else array
            address = run.base + slot.offset + step * slot.stride
            if slot.shape != source.shape and slot.dtype == np.int64:
                # Padding must be a valid index; results of other padding are never read.
                self.stream.device.clear(address, slot.nbytes, self.stream.handle)
            if not slot.shape:
                self.stream.copy(address, source.address, slot.nbytes)
                continue
            count = source.shape[along] if axis is None or part is None else part.count
            move_block(
                self.stream,
                (address, slot.shape, 0),
                (source.address, source.shape, start),
                along,
                count,
                slot.dtype.itemsize,
            )

    def _run_steps(self, run: Run) -> None:
        if not self.use_graphs or self.graphs_failed:
            self._enqueue(run)
            return
        recording = self._recordings.get(run.key, Recording)
        recording.runs += 1
        if recording.graph is None and recording.runs > 1:
            recording.graph = self._capture(run)
        if recording.graph is None:
            self._enqueue(run)
            return
        self.stream.device.launch(recording.graph, self.stream.handle)
        self.counts.launched += 1

    def _capture(self, run: Run) -> Any:
        # The first step does not overwrite its input state, so running it twice changes
        # nothing; it makes TensorRT allocate memory, which must not happen during a capture.
        self._enqueue_step(run, 0)
        try:
            with self.stream.capture() as graphs:
                for step in range(run.layout.steps):
                    self._enqueue_step(run, step)
        except DisaError as error:
            self.graphs_failed = str(error)
            return None
        self.counts.captured += 1
        return graphs[0]

    def _enqueue(self, run: Run) -> None:
        for step in range(run.layout.steps):
            self._enqueue_step(run, step)
        self.counts.enqueued += run.layout.steps

    def _enqueue_step(self, run: Run, step: int) -> None:
        layout, base = run.layout, run.base
        if self._fixed_addresses:
            self.stream.copy(base, base + layout.records + step * layout.record, layout.record)
        # The host has microseconds for a step, so it does not look at fixed addresses again.
        if step == 0 or not self._fixed_addresses:
            self._set_addresses(run, step)
        self.session.engine.enqueue(run.context.handle)
        if self._fixed_addresses:
            for first, second in layout.state.values():
                self.stream.copy(base + first.offset, base + second.offset, first.nbytes)

    def _set_addresses(self, run: Run, step: int) -> None:
        for name, offset in self._offsets(run, step).items():
            if run.context.addresses.get(name) != run.base + offset:
                run.context.handle.set_tensor_address(name, run.base + offset)
                run.context.addresses[name] = run.base + offset

    def _offsets(self, run: Run, step: int) -> dict[str, int]:
        """The offset of each tensor in a step."""
        layout = run.layout
        offsets = {n: slot.offset for n, slot in {**layout.constant, **layout.output}.items()}
        if self._fixed_addresses:
            parity = 0
            offsets |= {n: slot.offset - layout.records for n, slot in layout.per_step.items()}
        else:
            parity = step % 2
            offsets |= {n: s.offset + step * s.stride for n, s in layout.per_step.items()}
        for output, taken in run.call.carry.items():
            pair = layout.state[taken]
            offsets[taken], offsets[output] = pair[parity].offset, pair[1 - parity].offset
        return offsets

    def _copy_out(self, run: Run, part: Piece | None, size: int, results: dict[str, Array]) -> None:
        """Copy the outputs of the last step from the loop's memory."""
        last = 0 if self._fixed_addresses else run.layout.steps % 2
        slots = dict(run.layout.output)
        slots |= {output: run.layout.state[taken][last] for output, taken in run.call.carry.items()}
        for spec in self.session.outputs:
            slot = slots[spec.name]
            source = (run.base + slot.offset, slot.shape, slot.dtype)
            self.session.splitter.place(self.stream, results, spec, source, part, size)

    def _retire(self, _context: Context) -> None:
        """Ensure that a context is no longer used by work in the stream or by a graph."""
        self.stream.synchronize()
        self._drop_graphs()

    def _drop_graphs(self) -> None:
        for recording in self._recordings.values():
            self._forget(recording)

    def _forget(self, recording: Recording) -> None:
        if recording.graph is not None:
            self.stream.device.destroy_graph(recording.graph)
            recording.graph = None


def _on_device(array: Any) -> bool:
    return isinstance(array, DeviceArray)


def _slot(layout: Layout, name: str) -> Slot:
    if name in layout.state:
        return layout.state[name][0]
    return layout.constant.get(name) or layout.per_step[name]
