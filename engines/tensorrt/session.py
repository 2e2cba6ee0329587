"""Runs an engine with all arrays on the GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import EngineError, InvalidRequest, OutOfMemory
from ..gpu.array import Buffer, DeviceArray, Stream, move_block
from ..gpu.loop import DeviceLoop
from ..gpu.profile import Piece, Range, check_sizes, pieces, sizes_of
from ..gpu.split import Splitter
from ..session import DTYPES, Array, TensorSpec, check_inputs, check_loop
from .flavour import Flavour
from .logger import collect, last_error


class Engine:
    """A loaded engine and the execution contexts made from it."""

    def __init__(
        self,
        flavour: Flavour,
        loaded: Any,
        stream: Stream,
        cache: Any = None,
        specialisation: str = "lazy",
    ) -> None:
        self.flavour, self.loaded, self.stream = flavour, loaded, stream
        self.cache = cache
        self.specialisation = specialisation
        self._memory: Buffer | None = None

    @property
    def captures_by_itself(self) -> bool:
        """Whether TensorRT makes the CUDA graphs itself, and so needs constant addresses."""
        return self.flavour.captures_by_itself

    def create_context(self, loop: bool) -> Any:
        """Create a context; `loop` if it will run the same shapes repeatedly."""
        with collect(self.flavour.trt) as messages:
            config = self.flavour.runtime_config(self.loaded, loop, self.specialisation)
            if config is not None and self.cache is not None:
                self.cache.attach(config)
            context = self.flavour.create_context(self.loaded, config)
            if context is None:
                raise OutOfMemory(
                    f"not enough memory for {self.flavour} to run this graph "
                    f"({last_error(messages)}): use a smaller --batch-size or end other programs "
                    "on this GPU"
                )
            # Only the first context of an engine has a profile initially.
            try:
                chosen = context.set_optimization_profile_async(0, self.stream.handle)
            except RuntimeError:  # TensorRT's bindings raise it instead of returning False.
                chosen = False
            if not chosen:
                raise EngineError(f"{self.flavour} cannot use the profile: {last_error(messages)}")
        if self.flavour.contexts_need_memory:
            # Contexts never run at the same time, so all share the same memory.
            if self._memory is None:
                self._memory = Buffer(self.stream, self.flavour.memory_size(self.loaded))
            self.flavour.set_memory(context, self._memory.address, self._memory.size)
        return context

    def infer_shapes(self, context: Any, graph: str) -> None:
        """Check that the shapes of all inputs are set and fit one another."""
        with collect(self.flavour.trt) as messages:
            try:
                missing = context.infer_shapes()
            except RuntimeError as error:
                raise EngineError(
                    f"{self.flavour} cannot run the graph {graph} with these shapes: "
                    f"{last_error(messages)}"
                ) from error
        if missing:
            raise InvalidRequest(f"the graph {graph} lacks {', '.join(missing)}")

    def enqueue(self, context: Any) -> None:
        """Enqueue one execution in the stream."""
        with collect(self.flavour.trt) as messages:
            if not context.execute_async_v3(self.stream.handle):
                raise EngineError(f"{self.flavour} failed to run: {last_error(messages)}")


class TensorRTSession:
    """A graph of a plan on an NVIDIA GPU; see `engines.session.Session`.

    Outputs stay on the device and inputs may be there. No method waits for the GPU; reading an
    array does. A request that is larger than the engine's profile is split along its batch, and
    a smaller one is padded.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __init__(
        self,
        graph: str,
        engine: Engine,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        ranges: Mapping[str, Range],
        split: str | None,
        description: str,
    ) -> None:
        self.graph, self.engine, self.ranges = graph, engine, ranges
        self.inputs, self.outputs, self._description = inputs, outputs, description
        self.stream = engine.stream
        self.splitter = Splitter(inputs, split)
        self._context: Any = None
        self._loop: DeviceLoop | None = None

    @property
    def description(self) -> str:
        """See `Session.description`; includes the reason if a loop runs without CUDA graphs."""
        failed = self._loop.graphs_failed if self._loop is not None else ""
        return self._description + (f", no CUDA graphs ({failed})" if failed else "")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.inputs, inputs)
        arrays = self.stream.local(inputs)
        sizes = sizes_of(self.inputs, {name: tuple(a.shape) for name, a in arrays.items()})
        name = self.splitter.name
        check_sizes(self.graph, sizes, self.ranges, name)
        if name is None:
            return self._execute(arrays)
        size = sizes[name]
        if size == 0:
            raise InvalidRequest(f"the graph {self.graph} got an empty {name}")
        parts = pieces(size, self.ranges[name])
        if len(parts) == 1 and parts[0].size == size:
            return self._execute(arrays)
        return self._run_parts(arrays, parts, size)

    def iterate(
        self,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        steps = check_loop(self, carry, constants, per_step, state)
        if self._loop is None:
            self._loop = DeviceLoop(self)
        fixed, changing, first = map(self.stream.local, (constants, per_step, state))
        return self._loop.run(carry, fixed, changing, first, steps)

    @property
    def loop(self) -> DeviceLoop | None:
        """The loop of `iterate`, with its captures; None before the first call."""
        return self._loop

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        return self.stream.empty(shape, dtype)

    def _execute(self, arrays: Mapping[str, Any]) -> dict[str, Array]:
        if self._context is None:
            self._context = self.engine.create_context(loop=False)
        context = self._context
        held = {name: self.stream.aligned_copy(array) for name, array in arrays.items()}
        for name, array in held.items():
            set_input(context, name, array.shape, array.address)
        self.engine.infer_shapes(context, self.graph)
        outputs = {}
        for spec in self.outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            outputs[spec.name] = self.stream.empty(shape, DTYPES[spec.dtype])
            context.set_tensor_address(spec.name, outputs[spec.name].address)
        self.engine.enqueue(context)
        return outputs

    def _run_parts(
        self, arrays: Mapping[str, Any], parts: list[Piece], size: int
    ) -> dict[str, Array]:
        results: dict[str, Array] = {}
        for part in parts:
            cut = {spec.name: self._cut(spec, arrays[spec.name], part) for spec in self.inputs}
            outputs = self._execute(cut)
            for spec in self.outputs:
                output = outputs[spec.name]
                source = (output.address, output.shape, output.dtype)
                self.splitter.place(self.stream, results, spec, source, part, size)
        return results

    def _cut(self, spec: TensorSpec, array: Any, part: Piece) -> Any:
        axis = self.splitter.axis(spec)
        if axis is None:
            return array
        shape = (*array.shape[:axis], part.size, *array.shape[axis + 1 :])
        if not isinstance(array, DeviceArray):
            result = np.zeros(shape, array.dtype)
            place = (slice(None),) * axis
            result[(*place, slice(part.count))] = self.splitter.cut_host(spec, array, part)
            return result
        target = self.stream.empty(shape, array.dtype)
        if part.size != part.count:
            self.stream.device.clear(target.address, target.nbytes, self.stream.handle)
        move_block(
            self.stream,
            (target.address, target.shape, 0),
            (array.address, array.shape, part.start),
            axis,
            part.count,
            array.dtype.itemsize,
        )
        return target


def set_input(context: Any, name: str, shape: tuple[int, ...], address: int) -> None:
    """Set an input of a context.

    Raises:
        DisaError: the engine does not accept the shape.
    """
    if not context.set_input_shape(name, shape):
        raise EngineError(f"the engine does not accept {name} of shape {list(shape)}")
    context.set_tensor_address(name, address)
