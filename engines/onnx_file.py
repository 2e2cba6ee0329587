"""Points the external data of an ONNX file at where it lies inside a plan.

An ONNX file names the files that hold its weights, and offsets in them. ONNX Runtime maps
weights into memory only from a file, so these references are rewritten to name the plan itself.
References to anything but the graph's own data are refused: the ONNX file of a stranger reads
no other file. Only the framing of protobuf is understood here, and the few field numbers of
onnx.proto on the way to a tensor's external data; all else is copied as it is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..errors import DisaError

_MAX_DEPTH = 32
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

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
_EXTERNAL_DATA = 13
_KEY, _VALUE = 1, 2


@dataclass(frozen=True)
class Extent:
    """A range of bytes in a file."""

    offset: int
    size: int


class _Damaged(Exception):
    """The bytes are not protobuf."""


def relocate(model: memoryview, locations: Mapping[str, Extent], file_name: str) -> bytes:
    """The ONNX file `model` with its external data in `file_name`.

    locations: for each file that `model` may name, where its content lies in `file_name`.
    Raises DisaError if the model is damaged, names another file or reaches beyond one.
    """
    try:
        return b"".join(_message("ModelProto", model, locations, file_name, _MAX_DEPTH))
    except _Damaged as error:
        raise DisaError(
            f"an ONNX graph in the plan is damaged ({error}): export the checkpoint again"
        ) from error


def _message(
    kind: str, data: memoryview, locations: Mapping[str, Extent], file_name: str, depth: int
) -> Iterator[bytes | memoryview]:
    if depth == 0:
        raise _Damaged("nested too deeply")
    children = _CHILDREN[kind]
    for number, body, whole in _fields(data):
        child = children.get(number) if body is not None else None
        if child is None or body is None:
            yield whole
            continue
        if child == "TensorProto":
            parts = _tensor(body, locations, file_name)
        else:
            parts = list(_message(child, body, locations, file_name, depth - 1))
        yield _frame(number, sum(map(len, parts)))
        yield from parts


def _tensor(
    data: memoryview, locations: Mapping[str, Extent], file_name: str
) -> list[bytes | memoryview]:
    parts: list[bytes | memoryview] = []
    external: dict[str, str] = {}
    for number, body, whole in _fields(data):
        if number == _EXTERNAL_DATA and body is not None:
            entry = {n: _text(b) for n, b, _ in _fields(body) if b is not None}
            external[entry.get(_KEY, "")] = entry.get(_VALUE, "")
        else:
            parts.append(whole)
    if not external:
        return [data]
    location = external.get("location", "")
    if location not in locations:
        raise DisaError(
            f"an ONNX graph in the plan wants its weights from {location[:80]!r}, which is no "
            "part of it: do not use this plan"
        )
    extent = locations[location]
    offset = _number(external.get("offset", "0"))
    size = _number(external.get("length", str(extent.size - offset)))
    if offset + size > extent.size:
        raise _Damaged(f"weights beyond the end of {location}")
    external = {
        "location": file_name,
        "offset": str(extent.offset + offset),
        "length": str(size),
    }
    for key, value in external.items():
        entry_bytes = _entry(_KEY, key) + _entry(_VALUE, value)
        parts += [_frame(_EXTERNAL_DATA, len(entry_bytes)), entry_bytes]
    return parts


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | None, memoryview]]:
    """Field number, content if it has a length, and all bytes of each field of a message."""
    position, end = 0, len(data)
    while position < end:
        start = position
        tag, position = _varint(data, position)
        wire = tag & 7
        body = None
        if wire == _VARINT:
            _, position = _varint(data, position)
        elif wire == _BYTES:
            size, position = _varint(data, position)
            body = data[position : position + size]
            position += size
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise _Damaged(f"wire type {wire}")
        if position > end:
            raise _Damaged("cut short")
        yield tag >> 3, body, data[start:position]


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise _Damaged("cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise _Damaged("endless number")


def _frame(number: int, size: int) -> bytes:
    return _encode(number << 3 | _BYTES) + _encode(size)


def _entry(number: int, text: str) -> bytes:
    data = text.encode()
    return _frame(number, len(data)) + data


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        raise _Damaged("text that is not UTF-8") from None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise _Damaged(f"the number {text[:20]!r}")
    return int(text)
