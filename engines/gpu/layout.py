"""Layout of a loop's tensors in one block of device memory."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .array import aligned


@dataclass(frozen=True)
class Slot:
    """The position of a tensor.

    A tensor that changes with the steps is `stride` bytes further at every step.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stride: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor for one step."""
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, block: np.ndarray, start: int, steps: int) -> np.ndarray:
        """The tensor in a block of host memory that has the same layout from `start` on.

        A tensor that changes with the steps has them as its first axis.
        """
        offset = self.offset - start
        if not self.stride:
            return np.ndarray(self.shape, self.dtype, block.data, offset)
        inner = [math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        strides = (self.stride, *(count * self.dtype.itemsize for count in inner))
        return np.ndarray((steps, *self.shape), self.dtype, block.data, offset, strides)


@dataclass(frozen=True)
class Tensor:
    """A tensor to be laid out: its shape for one step, padding included."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    on_host: bool = False


@dataclass(frozen=True)
class Layout:
    """Positions of all tensors of a loop.

    First come the tensors whose address does not depend on the number of steps: the current
    record, a second buffer for each carried tensor, the other outputs, the inputs that are already
    on the device, and the inputs from the host. Then come the records, one for each step, with the
    tensors that change from step to step. So all inputs from the host are contiguous.
    """

    steps: int
    record: int
    """Size of a record in bytes."""
    records: int
    """Offset of the first record; the current record is at 0."""
    per_step: Mapping[str, Slot]
    constant: Mapping[str, Slot]
    state: Mapping[str, tuple[Slot, Slot]]
    output: Mapping[str, Slot]
    host: tuple[int, int]
    """Begin and end of the inputs from the host."""
    size: int


def lay_out(
    steps: int,
    per_step: Sequence[Tensor],
    constant: Sequence[Tensor],
    state: Sequence[Tensor],
    output: Sequence[Tensor],
) -> Layout:
    """Assign an aligned position to every tensor.

    Args:
        state: the carried inputs; each gets two positions: a step reads one and writes the
            other.
        output: the outputs that are not carried.
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
