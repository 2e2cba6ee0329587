"""Cuts requests that are too large into parts, and puts the results together again."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import DisaError
from ..session import TensorSpec
from .array import DeviceArray, Stream, move_block
from .profile import SPLIT, Piece


class Splitter:
    """Knows along which dimension a graph's requests may be cut.

    Attributes:
        name: the dimension; None if there is none.
    """

    def __init__(self, inputs: Iterable[TensorSpec]) -> None:
        self._known = {dimension for spec in inputs for dimension in spec.shape}
        self.name = next((name for name in SPLIT if name in self._known), None)

    def axis(self, spec: TensorSpec) -> int | None:
        """Where an input has the dimension, if it has it."""
        return spec.shape.index(self.name) if self.name in spec.shape else None

    def cut_host(self, spec: TensorSpec, array: np.ndarray, part: Piece | None) -> np.ndarray:
        """The part of an array in host memory, a view. Leading axes are those of steps."""
        axis = self.axis(spec)
        if axis is None or part is None:
            return array
        place = (slice(None),) * (axis + array.ndim - len(spec.shape))
        result: np.ndarray = array[(*place, slice(part.start, part.stop))]
        return result

    def place(
        self,
        stream: Stream,
        results: dict[str, Any],
        spec: TensorSpec,
        source: tuple[int, tuple[int, ...], np.dtype[Any]],
        part: Piece | None,
        size: int,
    ) -> None:
        """Put the output of one part where it belongs in the whole.

        source: address, shape and type of the output, padding included. size: of the whole,
        along the dimension that is cut.
        """
        address, shape, dtype = source
        axis, apart = (None, shape) if part is None else self._output_axis(spec, shape, part.size)
        if axis is None or part is None:
            results[spec.name] = stream.empty(shape, dtype)
            stream.copy(results[spec.name].address, address, results[spec.name].nbytes)
            return
        whole = (*apart[:axis], size, *apart[axis + 1 :])
        if spec.name not in results:
            merged = whole
            if len(apart) > len(shape):
                merged = (*whole[: axis - 1], whole[axis - 1] * size, *whole[axis + 1 :])
            results[spec.name] = stream.empty(merged, dtype)
        target: DeviceArray = results[spec.name]
        move_block(
            stream,
            (target.address, whole, part.start),
            (address, apart, 0),
            axis,
            part.count,
            dtype.itemsize,
        )

    def _output_axis(
        self, spec: TensorSpec, shape: tuple[int, ...], size: int
    ) -> tuple[int | None, tuple[int, ...]]:
        """Where an output has the dimension, and its shape with the dimension by itself.

        A dimension that no input has is some number of tokens times the one that is cut,
        token-major.
        """
        if self.name in spec.shape:
            return spec.shape.index(self.name), shape
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str) and name not in self._known:
                if shape[axis] % size:
                    raise DisaError(
                        f"the output {spec} of {shape[axis]} {name} is no multiple of {size} "
                        f"{self.name}: ask for fewer {self.name} at a time"
                    )
                return axis + 1, (*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :])
        return None, shape
