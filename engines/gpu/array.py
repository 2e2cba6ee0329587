"""Arrays in device memory, and the stream that orders all work on them."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np

from ...errors import DisaError
from .device import Device

ALIGNMENT = 256
"""Alignment of all addresses for TensorRT, in bytes."""
_STAGES = 32


class Memory(Protocol):
    """Device memory that is released when this object is deleted."""

    @property
    def address(self) -> int: ...
    @property
    def stream(self) -> "Stream": ...


class Buffer:
    """A block of device memory, released when the last reference to it is deleted."""

    __slots__ = ("address", "size", "stream")

    def __init__(self, stream: "Stream", size: int) -> None:
        self.stream = stream
        self.size = max(size, 1)
        # TensorRT needs an address for empty tensors too.
        self.address = stream.device.allocate(self.size, stream.handle)

    def __del__(self) -> None:
        if hasattr(self, "address") and not sys.is_finalizing():
            self.stream.release(self.address)


class DeviceArray:
    """A contiguous array in device memory.

    Work on it is enqueued in its stream; reading it with `np.asarray` waits for that work.
    """

    __slots__ = ("_buffer", "address", "dtype", "shape", "stream")

    def __init__(
        self, buffer: Memory, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0
    ) -> None:
        self._buffer = buffer
        self.stream = buffer.stream
        self.address = buffer.address + offset
        self.shape = shape
        self.dtype = dtype

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        result = np.empty(self.shape, self.dtype)
        if result.size:
            self.stream.device.download(result, self.address, self.stream.handle)
        return result if dtype is None else result.astype(dtype, copy=False)

    def reshape(self, *shape: Any) -> "DeviceArray":
        """The same memory with another shape; one dimension may be -1."""
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if -1 in sizes:
            rest = math.prod(size for size in sizes if size != -1)
            missing = self.size // rest if rest else 0
            sizes = tuple(missing if size == -1 else size for size in sizes)
        if math.prod(sizes) != self.size:
            raise DisaError(f"an array of shape {self.shape} cannot be reshaped to {sizes}")
        return self._view(sizes, 0)

    def __getitem__(self, key: Any) -> "DeviceArray":
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        if isinstance(key, slice):
            start, stop, step = key.indices(self.shape[0])
            if step != 1:
                raise DisaError("an array on a device supports slices of consecutive rows only")
            count = max(stop - start, 0)
            return self._view((count, *self.shape[1:]), start * row if count else 0)
        index = int(key)
        if not -self.shape[0] <= index < self.shape[0]:
            raise IndexError(f"index {index} is out of bounds for {self.shape[0]} rows")
        return self._view(self.shape[1:], index % self.shape[0] * row)

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set the rows of an index or slice, or, with a key such as `[:, :, 2:4]`, those of the
        slice along a later axis."""
        if isinstance(key, tuple):
            self._set_along(key, value)
            return
        target = self[key]
        value = self._fitting(value, target.shape)
        if isinstance(value, DeviceArray):
            target.stream.copy(target.address, value.address, target.nbytes)
        else:
            target.stream.upload(target.address, value)

    def _set_along(self, key: tuple[Any, ...], value: Any) -> None:
        *outer, last = key
        axis = len(outer)
        start, stop, step = last.indices(self.shape[axis])
        if step != 1 or any(each != slice(None) for each in outer):
            raise DisaError("an array on a device supports one slice of consecutive indices only")
        count = max(stop - start, 0)
        value = self._fitting(value, (*self.shape[:axis], count, *self.shape[axis + 1 :]))
        if not isinstance(value, DeviceArray):
            value = self.stream.put(np.ascontiguousarray(value))
        target, source = (self.address, self.shape, start), (value.address, value.shape, 0)
        move_block(self.stream, target, source, axis, count, self.dtype.itemsize)

    def _fitting(self, value: Any, shape: tuple[int, ...]) -> Any:
        """The value, on the device or as a host array, if a part of this shape can be set to it."""
        if not isinstance(value, DeviceArray):
            value = np.asarray(value)
        if tuple(value.shape) != shape or value.dtype != self.dtype:
            raise DisaError(
                f"a slice of shape {shape} and type {self.dtype} cannot be set to one of shape "
                f"{tuple(value.shape)} and type {value.dtype}"
            )
        return value

    def _view(self, shape: tuple[int, ...], offset: int) -> "DeviceArray":
        inside = self.address - self._buffer.address + offset
        return DeviceArray(self._buffer, shape, self.dtype, inside)


class Stream:
    """A CUDA stream: work on one device, executed in the order in which it is enqueued.

    Because of this order, memory may be freed while work that uses it is still enqueued: the
    next user of the memory comes later in the stream.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.handle = device.create_stream()
        self.capturing = False
        self._returned: list[int] = []
        self._stages = [_Stage(device) for _ in range(_STAGES)]
        self._next = 0

    def empty(self, shape: Sequence[int], dtype: Any) -> DeviceArray:
        """An uninitialised array."""
        kind = np.dtype(dtype)
        sizes = tuple(int(size) for size in shape)
        return DeviceArray(Buffer(self, math.prod(sizes) * kind.itemsize), sizes, kind)

    def put(self, array: np.ndarray) -> DeviceArray:
        """Copy an array to the device, without waiting; `array` may be changed at once."""
        result = self.empty(array.shape, array.dtype)
        self.upload(result.address, array)
        return result

    def local(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Arrays of this stream unchanged, all others as contiguous arrays in host memory."""
        return {
            name: array if self._has(array) else np.ascontiguousarray(array)
            for name, array in arrays.items()
        }

    def aligned_copy(self, array: Any) -> DeviceArray:
        """Any array on the device, at an aligned address."""
        if not self._has(array):
            return self.put(np.ascontiguousarray(array))
        on_device: DeviceArray = array
        return on_device if array.address % ALIGNMENT == 0 else self.copy_of(array)

    def copy_of(self, array: DeviceArray) -> DeviceArray:
        """A copy of an array in new memory."""
        result = self.empty(array.shape, array.dtype)
        self.copy(result.address, array.address, array.nbytes)
        return result

    def _has(self, array: Any) -> bool:
        return isinstance(array, DeviceArray) and array.stream is self

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy `array` to the device; it may be changed at once."""
        if array.size:
            with self.staging(address, array.nbytes) as block:
                np.copyto(block.view(array.dtype).reshape(array.shape), array)

    @contextmanager
    def staging(self, address: int, size: int) -> Iterator[np.ndarray]:
        """Yield `size` bytes of host memory that are copied to the device when the block ends.

        Waits only if the GPU is many uploads behind.
        """
        stage = self._stages[self._next]
        self._next = (self._next + 1) % len(self._stages)
        block = stage.memory(size)
        yield block
        self.device.upload(address, block, self.handle)
        self.device.record(stage.event, self.handle)

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy memory on the device."""
        if size:
            self.device.copy(target, source, size, self.handle)

    def release(self, address: int) -> None:
        """Free memory; during a capture, after the capture."""
        self._returned.append(address)
        if not self.capturing:
            while self._returned:
                self.device.free(self._returned.pop(), self.handle)

    @contextmanager
    def capture(self) -> Iterator[list[Any]]:
        """Record the work of the block instead of executing it.

        Yields:
            A list that contains the recorded graph after the block.

        Raises:
            DisaError: some work cannot be recorded.
        """
        graphs: list[Any] = []
        self.device.begin_capture(self.handle)
        self.capturing = True
        try:
            yield graphs
        except BaseException:
            self.capturing = False
            # The exception that broke the capture is more informative.
            with suppress(DisaError):
                self.device.destroy_graph(self.device.end_capture(self.handle))
            raise
        self.capturing = False
        graphs.append(self.device.end_capture(self.handle))

    @contextmanager
    def keeping_memory(self) -> Iterator[None]:
        """Free no memory before the block ends; for a library that captures in this stream.

        Another thread may delete an array at any time, and freeing it would be captured too.
        """
        before, self.capturing = self.capturing, True
        try:
            yield
        finally:
            self.capturing = before

    def synchronize(self) -> None:
        """Wait until all work is done."""
        self.device.synchronize(self.handle)


class _Stage:
    """Host memory that the GPU reads, and the event that marks the end of its copy."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.event = device.create_event()
        self.block = np.empty(0, np.uint8)

    def memory(self, size: int) -> np.ndarray:
        """`size` bytes that no pending copy reads."""
        self.device.wait(self.event)
        if len(self.block) < size:
            self.block = self.device.allocate_host(max(4096, 1 << (size - 1).bit_length()))
        return self.block[:size]


def aligned(size: int) -> int:
    """`size` rounded up to the alignment of addresses."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def move_block(
    stream: Stream,
    target: tuple[int, tuple[int, ...], int],
    source: tuple[int, tuple[int, ...], int],
    axis: int,
    count: int,
    itemsize: int,
) -> None:
    """Copy `count` indices of `axis` from one array on the device to another.

    Args:
        target, source: address, shape, and first index along `axis`. The shapes are equal
            except for that axis.
    """
    (to, to_shape, to_start), (origin, shape, start) = target, source
    inner = math.prod(shape[axis + 1 :]) * itemsize
    rows, width = math.prod(shape[:axis]), count * inner
    if not rows * width:
        return
    to, origin = to + to_start * inner, origin + start * inner
    if rows == 1:
        stream.copy(to, origin, width)
        return
    target_rows, source_rows = (to, to_shape[axis] * inner), (origin, shape[axis] * inner)
    stream.device.copy_rows(target_rows, source_rows, width, rows, stream.handle)
