"""The few functions that checkpoints call when they are unpickled, and what they would give."""

import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from .pickle_values import NUMPY_TYPE, Global, Opaque, PickleError, Storage, TensorInfo, as_key

MAX_RANK = 16
MAX_ELEMENTS = 1 << 48
MAX_PATH = 4096


def call(wanted: Any, arguments: Any) -> Any:
    """What the call of a well-known function would give, as data; anything else is opaque."""
    if not isinstance(wanted, Global):
        return Opaque()
    if not isinstance(arguments, tuple):
        raise PickleError("is cut short or damaged")
    known = _KNOWN.get(str(wanted))
    return Opaque(wanted) if known is None else known(wanted, *arguments)


def _dict(_wanted: Global, *arguments: Any) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for argument in arguments:
        if isinstance(argument, dict):
            result.update(argument)
        elif isinstance(argument, list):
            for key, value in argument:
                result[as_key(key)] = value
    return result


def _first(_wanted: Global, *arguments: Any) -> Any:
    return arguments[0]


def _reconstruct(_wanted: Global, kind: Any, *_: Any) -> Opaque:
    return Opaque(kind if isinstance(kind, Global) else None)


def _path(wanted: Global, *parts: str) -> Any:
    if sum(map(len, parts)) > MAX_PATH:
        return Opaque(wanted)
    return str(PurePosixPath(*parts))


def _encode(wanted: Global, text: Any, *_: Any) -> Any:
    return text.encode("latin-1") if isinstance(text, str) else Opaque(wanted)


def _tensor(wanted: Global, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, Storage):
        return Opaque(wanted)
    return _strided(storage, "", offset, shape, stride)


def _typed_tensor(
    wanted: Global, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any
) -> Any:
    dtype = rest[2]
    if not isinstance(storage, Storage) or not isinstance(dtype, Global):
        return Opaque(wanted)
    return _strided(storage, dtype.name, offset, shape, stride)


def _strided(storage: Storage, dtype: str, offset: Any, shape: Any, stride: Any) -> TensorInfo:
    if len(shape) != len(stride) or len(shape) > MAX_RANK:
        raise PickleError(f"describes a tensor of {len(shape)} sizes and {len(stride)} strides")
    numbers = (offset, *shape, *stride)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise PickleError("describes a tensor whose sizes are not whole numbers from 0")
    # PyTorch computes the strides of a tensor without elements, too.
    if math.prod(max(size, 1) for size in shape) >= MAX_ELEMENTS:
        raise PickleError("describes a tensor of impossible sizes")
    return TensorInfo(storage, dtype, offset, tuple(shape), tuple(stride))


def _from_type(wanted: Global, function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
    # Only functions that make tensors: the arguments of this one may contain itself to any depth.
    known = _KNOWN.get(str(function)) if isinstance(function, Global) else None
    result = call(function, arguments) if known in (_tensor, _typed_tensor, _first) else None
    return result if isinstance(result, TensorInfo) else Opaque(wanted)


def _numpy_type(_wanted: Global, code: Any, *_: Any) -> Opaque:
    return Opaque(NUMPY_TYPE, {"code": code, "order": "<"})


def _numpy_scalar(wanted: Global, dtype: Any, data: Any) -> Any:
    code = dtype.state.get("code") if isinstance(dtype, Opaque) else None
    if not (isinstance(code, str) and re.fullmatch("[biu][1248]|f[248]", code)):
        return Opaque(wanted)
    size = int(code[1])
    if not isinstance(data, bytes) or len(data) != size:
        return Opaque(wanted)
    big = dtype.state.get("order") == ">"
    if code[0] == "f":
        return struct.unpack((">" if big else "<") + {2: "e", 4: "f", 8: "d"}[size], data)[0]
    number = int.from_bytes(data, "big" if big else "little", signed=code[0] == "i")
    return bool(number) if code[0] == "b" else number


_KNOWN: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "collections.defaultdict": _dict,
    "builtins.dict": _dict,
    "__builtin__.dict": _dict,
    "copyreg._reconstructor": _reconstruct,
    "copy_reg._reconstructor": _reconstruct,
    "_codecs.encode": _encode,
    "torch.Size": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "numpy.dtype": _numpy_type,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    **{
        f"{module}.{name}": _path
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
