"""Splits requests that are too large, and joins the results."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ...errors import InvalidRequest
from ..session import TensorSpec
from .array import DeviceArray, Stream, move_block
from .profile import Piece


class Splitter:
    """Splits the requests of a graph along one dimension.

    Attributes:
        name: the dimension, from the plan; None if the graph cannot be split.
    """

    def __init__(self, inputs: Iterable[TensorSpec], name: str | None) -> None:
        self._known = {dimension for spec in inputs for dimension in spec.shape}
        self.name = name

    def axis(self, spec: TensorSpec) -> int | None:
        """The axis of the dimension in an input; None if the input does not have it."""
        return spec.shape.index(self.name) if self.name in spec.shape else None

    def cut_host(self, spec: TensorSpec, array: np.ndarray, part: Piece | None) -> np.ndarray:
        """A view of a part of an array in host memory. The leading axes are step axes."""
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
        """Write the output of one part to its position in the complete output.

        Args:
            source: address, shape and type of the output, padding included.
            size: of the complete output, along the split dimension.
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
        """The axis of the dimension in an output, and the output's shape with an axis for it.

        A dimension that no input has is a number of tokens times the split dimension, token-major.
        """
        if self.name in spec.shape:
            return spec.shape.index(self.name), shape
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str) and name not in self._known:
                if shape[axis] % size:
                    raise InvalidRequest(
                        f"the output {spec} of {shape[axis]} {name} is not a multiple of {size} "
                        f"{self.name}: use fewer {self.name} at a time"
                    )
                return axis + 1, (*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :])
        return None, shape
