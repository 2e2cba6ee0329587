"""How arrays go into and out of a session of ONNX Runtime, in the host's memory or a device's."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .device_array import DeviceArray
from .session import Array, TensorSpec


class Runner(Protocol):
    """Runs a session of ONNX Runtime on arrays of one kind of memory.

    Inputs have been checked. See `Session` for the meaning of the arguments.
    """

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    def iterate(
        self,
        steps: int,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]: ...

    def empty(self, shape: Sequence[int], dtype: Any) -> Array: ...


class HostRunner:
    """Runs on NumPy arrays, which ONNX Runtime reads where they lie."""

    def __init__(self, session: Any, outputs: Sequence[TensorSpec]) -> None:
        self._session = session
        self._names = [spec.name for spec in outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._run(_contiguous(inputs))

    def iterate(
        self,
        steps: int,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        feed = _contiguous({**constants, **state})
        moving = _contiguous(per_step)
        outputs: dict[str, Array] = {}
        for step in range(steps):
            for name, values in moving.items():
                feed[name] = values[step]
            outputs = self._run(feed)
            for output, taken in carry.items():
                feed[taken] = outputs[output]
        return outputs

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, Array]:
        return dict(zip(self._names, self._session.run(self._names, feed), strict=True))


def _contiguous(arrays: Mapping[str, Array]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


class DeviceRunner:
    """Runs on `DeviceArray`s; nothing comes to the host, and a loop is waited for once."""

    def __init__(
        self, session: Any, outputs: Sequence[TensorSpec], device: tuple[str, int]
    ) -> None:
        self._session = session
        self._names = [spec.name for spec in outputs]
        self._device = device
        self._unawaited = _unawaited()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        binding = self._session.io_binding()
        placed = self._placed(inputs)
        for name, array in placed.items():
            binding.bind_ortvalue_input(name, array.value)
        return self._run(binding, {})

    def iterate(
        self,
        steps: int,
        carry: Mapping[str, str],
        constants: Mapping[str, Array],
        per_step: Mapping[str, Array],
        state: Mapping[str, Array],
    ) -> dict[str, Array]:
        binding = self._session.io_binding()
        held, moving, carried = map(self._placed, (constants, per_step, state))
        for name, array in held.items():
            binding.bind_ortvalue_input(name, array.value)
        # What a step writes the next one reads, while that writes the other of two buffers.
        buffers = [
            {
                output: self.empty(carried[taken].shape, carried[taken].dtype)
                for output, taken in carry.items()
            }
            for _ in range(2)
        ]
        outputs: dict[str, Array] = {}
        for step in range(steps):
            rows = {name: values[step] for name, values in moving.items()}
            for name, array in {**rows, **carried}.items():
                binding.bind_ortvalue_input(name, array.value)
            outputs = self._run(binding, buffers[step % 2], last=step == steps - 1)
            carried = {taken: outputs[output] for output, taken in carry.items()}
        return outputs

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        return DeviceArray.empty(shape, dtype, self._device)

    def _placed(self, arrays: Mapping[str, Array]) -> dict[str, DeviceArray]:
        return {
            name: array
            if isinstance(array, DeviceArray) and array.device == self._device
            else DeviceArray.copied(np.asarray(array), self._device)
            for name, array in arrays.items()
        }

    def _run(
        self, binding: Any, into: Mapping[str, DeviceArray], last: bool = True
    ) -> dict[str, Array]:
        """Run on what is bound; outputs in `into` are written there, others to new arrays."""
        for name in self._names:
            if name in into:
                binding.bind_ortvalue_output(name, into[name].value)
            else:
                binding.bind_output(name, *self._device)
        self._session.run_with_iobinding(binding, None if last else self._unawaited)
        if len(into) == len(self._names):
            return dict(into)
        values = binding.get_outputs()
        return {
            name: into[name] if name in into else DeviceArray.of(value, self._device)
            for name, value in zip(self._names, values, strict=True)
        }


def _unawaited() -> Any:
    """Options of a run that another run on the same device follows at once."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    # This is the default, which ONNX Runtime's Python takes long to find out by itself.
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options
