"""Where the tensors of a loop lie in one piece of device memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .array import aligned


@dataclass(frozen=True)
class Slot:
    """The place of a tensor.

    A tensor that changes with the steps lies `stride` bytes further at every step.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stride: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor at one step."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, block: np.ndarray, start: int, steps: int) -> np.ndarray:
        """The tensor in host memory that is laid out alike from `start` on.

        One that changes with the steps has them as its first axis.
        """
        offset = self.offset - start
        if not self.stride:
            return np.ndarray(self.shape, self.dtype, block.data, offset)
        inner = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        strides = (self.stride, *(count * self.dtype.itemsize for count in inner))
        return np.ndarray((steps, *self.shape), self.dtype, block.data, offset, strides)


@dataclass(frozen=True)
class Tensor:
    """A tensor to be placed: its shape at one step, padding included."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    on_host: bool = False


@dataclass(frozen=True)
class Layout:
    """Places of all tensors of a loop.

    First comes what keeps its address whatever the number of steps: a place for the current
    record, a second place for each carried tensor, the other outputs, the inputs that are on
    the device already, those that the host gives. Then come the records, one for each step,
    with what changes from step to step. So all that the host gives is one piece.
    """

    steps: int
    record: int
    """Bytes of a record."""
    records: int
    """Offset of the first record; the place for the current one is at 0."""
    per_step: Mapping[str, Slot]
    constant: Mapping[str, Slot]
    state: Mapping[str, tuple[Slot, Slot]]
    output: Mapping[str, Slot]
    host: tuple[int, int]
    """Where what the host gives begins and ends."""
    size: int


def lay_out(
    steps: int,
    per_step: Sequence[Tensor],
    constant: Sequence[Tensor],
    state: Sequence[Tensor],
    output: Sequence[Tensor],
) -> Layout:
    """Give every tensor an aligned place.

    state: the carried inputs, of which each gets two places: a step reads the one and
    writes the other. output: those that are not carried.
    """
    record, inside = 0, {}
    for tensor in per_step:
        inside[tensor.name] = record
        record += aligned(math.prod(tensor.shape) * tensor.dtype.itemsize)
    end = record

    def place(tensor: Tensor) -> Slot:
        nonlocal end
        slot = Slot(end, tensor.shape, tensor.dtype)
        end += aligned(slot.nbytes)
        return slot

    second = {tensor.name: place(tensor) for tensor in state}
    outputs = {tensor.name: place(tensor) for tensor in output}
    fixed = [*constant, *state]
    first = {tensor.name: place(tensor) for tensor in fixed if not tensor.on_host}
    host = end
    first |= {tensor.name: place(tensor) for tensor in fixed if tensor.on_host}
    records = end
    size = records + steps * record
    return Layout(
        steps=steps,
        record=record,
        records=records,
        per_step={
            t.name: Slot(records + inside[t.name], t.shape, t.dtype, record) for t in per_step
        },
        constant={tensor.name: first[tensor.name] for tensor in constant},
        state={tensor.name: (first[tensor.name], second[tensor.name]) for tensor in state},
        output=outputs,
        host=(host, size if any(tensor.on_host for tensor in per_step) else records),
        size=size,
    )
