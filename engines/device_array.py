"""An array in the memory of a device that ONNX Runtime drives."""

import ctypes
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import DisaError

_DLPACK_DEVICES = {"cpu": 1, "cuda": 2}
_DLPACK_CODES = {"i": 0, "f": 2}


class DeviceArray:
    """A contiguous array on a device, or a view of a part of one.

    Offers what `Session` promises of arrays. `np.asarray` copies it to the host. Assigning to a
    slice copies from the host or from another DeviceArray of the same device.
    """

    def __init__(
        self, owner: Any, pointer: int, shape: Sequence[int], dtype: Any, device: tuple[str, int]
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.pointer = pointer
        self.device = device
        # The OrtValue whose memory this is lives as long as any view of it.
        self._owner = owner

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: Any, device: tuple[str, int]) -> "DeviceArray":
        """An uninitialised array on `device`, a name and a number such as ("cuda", 0)."""
        import onnxruntime

        # An empty array has an address too.
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            [max(math.prod(shape), 1)], np.dtype(dtype).type, *device
        )
        return cls(value, value.data_ptr(), shape, dtype, device)

    @classmethod
    def of(cls, value: Any, device: tuple[str, int]) -> "DeviceArray":
        """The array in an OrtValue."""
        dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64}[value.data_type()]
        return cls(value, value.data_ptr(), value.shape(), dtype, device)

    @classmethod
    def copied(cls, array: Any, device: tuple[str, int]) -> "DeviceArray":
        """A copy of an array on `device`."""
        copy = cls.empty(array.shape, array.dtype, device)
        copy[:] = array
        return copy

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice) -> "DeviceArray":
        start, stop = self._range(index)
        row = math.prod(self.shape[1:])
        shape = self.shape[1:] if isinstance(index, int) else (stop - start, *self.shape[1:])
        pointer = self.pointer + start * row * self.dtype.itemsize
        return DeviceArray(self._owner, pointer, shape, self.dtype, self.device)

    def __setitem__(self, index: int | slice, values: Any) -> None:
        part = self[index]
        if not isinstance(values, DeviceArray):
            values = np.ascontiguousarray(values)
        if values.shape != part.shape or values.dtype != part.dtype:
            raise DisaError(
                f"a part of shape {part.shape} and type {part.dtype} cannot be set to an array of "
                f"shape {values.shape} and type {values.dtype}"
            )
        if math.prod(part.shape):
            part.value.update_inplace(values.value if isinstance(values, DeviceArray) else values)

    def reshape(self, *shape: Any) -> "DeviceArray":
        """A view with another shape; one dimension may be -1."""
        sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        total = math.prod(self.shape)
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = total // known if known else 0
        if math.prod(sizes) != total or min(sizes, default=0) < 0:
            raise DisaError(f"an array of shape {self.shape} cannot be given the shape {shape}")
        return DeviceArray(self._owner, self.pointer, sizes, self.dtype, self.device)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if not math.prod(self.shape):
            host = np.empty(self.shape, self.dtype)
        else:
            host = np.array(self.value.numpy())
        return host if dtype is None else host.astype(dtype, copy=False)

    def __dlpack__(self, **_options: Any) -> Any:
        return _capsule(self)

    def __dlpack_device__(self) -> tuple[int, int]:
        name, number = self.device
        return _DLPACK_DEVICES[name], number

    @cached_property
    def value(self) -> Any:
        """The OrtValue of this array, which keeps its memory alive."""
        import onnxruntime

        return onnxruntime.OrtValue.from_dlpack(self)

    def _range(self, index: int | slice) -> tuple[int, int]:
        size = self.shape[0]
        if isinstance(index, slice):
            start, stop, step = index.indices(size)
            if step != 1:
                raise DisaError("an array on a device has slices of neighbouring rows only")
            return start, max(start, stop)
        if not -size <= index < size:
            raise IndexError(f"index {index} is outside of an axis of size {size}")
        return index % size, index % size + 1


class _Tensor(ctypes.Structure):
    """DLManagedTensor of DLPack 0.8 (dlpack.h), which begins with its DLTensor."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Tensor))
_Tensor._fields_ = [
    ("data", ctypes.c_void_p),
    ("device_type", ctypes.c_int32),
    ("device_id", ctypes.c_int32),
    ("ndim", ctypes.c_int32),
    ("code", ctypes.c_uint8),
    ("bits", ctypes.c_uint8),
    ("lanes", ctypes.c_uint16),
    ("shape", ctypes.POINTER(ctypes.c_int64)),
    ("strides", ctypes.POINTER(ctypes.c_int64)),
    ("byte_offset", ctypes.c_uint64),
    ("manager_ctx", ctypes.c_void_p),
    ("deleter", _Deleter),
]

# What a consumer of a capsule still uses, by the address of its tensor.
_lent: dict[int, Any] = {}


@_Deleter
def _give_back(tensor: Any) -> None:
    _lent.pop(ctypes.addressof(tensor.contents), None)


def _capsule(array: DeviceArray) -> Any:
    device_type, device_id = array.__dlpack_device__()
    shape = (ctypes.c_int64 * len(array.shape))(*array.shape)
    tensor = _Tensor(
        data=array.pointer,
        device_type=device_type,
        device_id=device_id,
        ndim=len(array.shape),
        code=_DLPACK_CODES[array.dtype.kind],
        bits=array.dtype.itemsize * 8,
        lanes=1,
        shape=shape,
        strides=None,
        byte_offset=0,
        manager_ctx=None,
        deleter=_give_back,
    )
    address = ctypes.addressof(tensor)
    _lent[address] = (tensor, shape, array._owner)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype = ctypes.py_object
    new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, b"dltensor", None)
