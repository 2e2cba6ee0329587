"""The interface between arrays and a session of ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..session import Array, TensorSpec


class Runner(Protocol):
    """Runs a session of ONNX Runtime on arrays of one kind of memory.

    Inputs have been checked. See `Session` for the arguments.
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
    """Runs on NumPy arrays, without copying them."""

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
