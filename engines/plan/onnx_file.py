"""The external data of an ONNX file inside a plan.

An ONNX file refers to its weights by file names and offsets. ONNX Runtime memory-maps weights only
from a file, so `relocate` rewrites these references to name the plan itself. OpenVINO can share
existing memory, so `detach` removes the weights from the file. References to anything but the
graph's own data are refused: an untrusted ONNX file reads no other file. Only the framing of
protobuf is parsed here, and the field numbers of onnx.proto that lead to a tensor's external data;
everything else is copied unchanged.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod

from ...errors import DamagedFile
from .protobuf import Damaged, fields, frame, framed, integer, integers, text

_MAX_REPEATS = 2
"""How often weights may be referred to on average: each reference costs memory."""
_MAX_DEPTH = 32

# message -> field number -> message. onnx.proto, IR version 13.
_CHILDREN: Mapping[str, Mapping[int, str]] = {
    "ModelProto": {7: "GraphProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
# Fields of ModelProto, GraphProto, TensorProto and of its external data entries.
_GRAPH = 7
_INITIALIZER, _INPUT = 5, 11
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_KEY, _VALUE = 1, 2

# TensorProto.DataType -> its name, and the bytes of an element.
_TYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    6: ("int32", 4),
    7: ("int64", 8),
    10: ("float16", 2),
    16: ("bfloat16", 2),
    17: ("float8_e4m3fn", 1),
    19: ("float8_e5m2", 1),
}

_Parts = list[bytes | memoryview]


@dataclass(frozen=True)
class Extent:
    """A range of bytes in a file."""

    offset: int
    size: int


@dataclass(frozen=True)
class Weight:
    """An initializer that was removed from an ONNX file.

    Attributes:
        dtype: such as "float32" or "bfloat16"; `ml_dtypes` defines the types that NumPy lacks.
        data: its elements in C order, as a view of the plan.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def relocate(model: memoryview, locations: Mapping[str, Extent], file_name: str) -> bytes:
    """The ONNX file `model` with its external data in `file_name`.

    Args:
        locations: for each file that `model` may refer to, the range of its content in
            `file_name`.

    Raises:
        DamagedFile: the model is damaged, refers to another file or to data beyond the end of one.
    """
    sizes = {name: extent.size for name, extent in locations.items()}

    def moved(data: memoryview) -> _Parts:
        reference = _reference(data, sizes)
        if reference is None:
            return [data]
        entries = {
            "location": file_name,
            "offset": str(locations[reference.file].offset + reference.extent.offset),
            "length": str(reference.extent.size),
        }
        parts = [whole for number, _, whole in fields(data) if number != _EXTERNAL_DATA]
        return [*parts, *(framed(_EXTERNAL_DATA, _entry(*entry)) for entry in entries.items())]

    with _damage_explained():
        return b"".join(_message("ModelProto", model, moved, _MAX_DEPTH))


def detach(
    model: memoryview, contents: Mapping[str, memoryview], least: int
) -> tuple[bytes, list[Weight]]:
    """The ONNX file `model` without external data, and the weights that were removed.

    Initializers of the main graph with at least `least` bytes outside the file become inputs of
    the same name after the other inputs; all other external data is stored inline.

    Args:
        contents: the content of each file that `model` may refer to.

    Raises:
        DamagedFile: the model is damaged, refers to another file or to data beyond the end of one.
    """
    weights: list[Weight] = []
    inline = partial(_inline, contents)

    def graph(data: memoryview) -> Iterator[bytes | memoryview]:
        inputs = []
        for number, body, whole in fields(data):
            weight = _weight(body, contents, least) if number == _INITIALIZER and body else None
            if weight:
                weights.append(weight)
                inputs.append(framed(_INPUT, _value_info(weight)))
            else:
                yield from _field("GraphProto", number, body, whole, inline, _MAX_DEPTH)
        yield from inputs

    parts: _Parts = []
    with _damage_explained():
        for number, body, whole in fields(model):
            if number == _GRAPH and body is not None:
                content = list(graph(body))
                parts += [frame(number, sum(map(len, content))), *content]
            else:
                parts += _field("ModelProto", number, body, whole, inline, _MAX_DEPTH)
        present = len(model) + sum(map(len, contents.values()))
        named = sum(map(len, parts)) + sum(len(weight.data) for weight in weights)
        if named > _MAX_REPEATS * present:
            raise Damaged("it refers to the same weights too often")
        return b"".join(parts), weights


@dataclass(frozen=True)
class _ValueRange:
    """The position of a tensor's values."""

    file: str
    extent: Extent


def _message(
    kind: str, data: memoryview, tensor: Callable[[memoryview], _Parts], depth: int
) -> Iterator[bytes | memoryview]:
    """A message in which every tensor is replaced by the result of `tensor`."""
    if depth == 0:
        raise Damaged("nested too deeply")
    for number, body, whole in fields(data):
        yield from _field(kind, number, body, whole, tensor, depth)


def _field(
    kind: str,
    number: int,
    body: memoryview | None,
    whole: memoryview,
    tensor: Callable[[memoryview], _Parts],
    depth: int,
) -> Iterator[bytes | memoryview]:
    child = _CHILDREN[kind].get(number)
    if child is None or body is None:
        yield whole
        return
    if child == "TensorProto":
        parts = tensor(body)
    else:
        parts = list(_message(child, body, tensor, depth - 1))
    yield frame(number, sum(map(len, parts)))
    yield from parts


def _reference(data: memoryview, sizes: Mapping[str, int]) -> _ValueRange | None:
    """The position of a tensor's values; None if they are inside the tensor."""
    external: dict[str, str] = {}
    for number, body, _ in fields(data):
        if number == _EXTERNAL_DATA and body is not None:
            entry = {n: text(b) for n, b, _ in fields(body) if b is not None}
            external[entry.get(_KEY, "")] = entry.get(_VALUE, "")
    if not external:
        return None
    location = external.get("location", "")
    if location not in sizes:
        raise DamagedFile(
            f"an ONNX graph in the plan refers to weights in {location[:80]!r}, which is not "
            "part of the plan: do not use this plan"
        )
    offset = _number(external.get("offset", "0"))
    size = _number(external.get("length", str(sizes[location] - offset)))
    if offset + size > sizes[location]:
        raise Damaged(f"weights beyond the end of {location}")
    return _ValueRange(location, Extent(offset, size))


def _values(data: memoryview, contents: Mapping[str, memoryview]) -> memoryview | None:
    """The values of a tensor that are outside of it."""
    reference = _reference(data, {name: len(content) for name, content in contents.items()})
    if reference is None:
        return None
    start = reference.extent.offset
    return contents[reference.file][start : start + reference.extent.size]


def _inline(contents: Mapping[str, memoryview], data: memoryview) -> _Parts:
    values = _values(data, contents)
    if values is None:
        return [data]
    outside = (_EXTERNAL_DATA, _DATA_LOCATION)
    parts = [whole for number, _, whole in fields(data) if number not in outside]
    return [*parts, frame(_RAW_DATA, len(values)), values]


def _weight(data: memoryview, contents: Mapping[str, memoryview], least: int) -> Weight | None:
    """An initializer as a weight to detach; None if it must stay in the file."""
    values = _values(data, contents)
    if values is None or len(values) < least:
        return None
    name, dtype, shape = "", 0, list[int]()
    for number, body, whole in fields(data):
        if number == _NAME and body is not None:
            name = text(body)
        elif number == _DATA_TYPE:
            dtype = integers(body, whole)[-1]
        elif number == _DIMS:
            shape += integers(body, whole)
    if dtype not in _TYPES:
        return None
    type_name, item_size = _TYPES[dtype]
    if prod(shape) * item_size != len(values):
        raise Damaged(f"the weight {name[:80]} of shape {shape[:8]} in {len(values)} bytes")
    return Weight(name, type_name, tuple(shape), values)


def _value_info(weight: Weight) -> bytes:
    """The ValueInfoProto of an input: name 1, type 2 { tensor 1 { element 1, shape 2 } }."""
    dims = b"".join(framed(1, integer(1, size)) for size in weight.shape)
    number = next(n for n, (name, _) in _TYPES.items() if name == weight.dtype)
    tensor = integer(1, number) + framed(2, dims)
    return framed(1, weight.name) + framed(2, framed(1, tensor))


def _entry(key: str, value: str) -> bytes:
    return framed(_KEY, key) + framed(_VALUE, value)


def _number(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
        raise Damaged(f"the number {digits[:20]!r}")
    return int(digits)


@contextmanager
def _damage_explained() -> Iterator[None]:
    try:
        yield
    except Damaged as error:
        raise DamagedFile(
            f"an ONNX graph in the plan is damaged ({error}): export the checkpoint again"
        ) from error
