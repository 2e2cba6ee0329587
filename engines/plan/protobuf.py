"""The framing of protobuf: reads and writes fields with their numbers.

The meaning of the fields is not known here.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LARGEST_TAG = (1 << 32) - 1
"""Other readers cut a tag to 32 bits, so that a larger one would be another field to them."""


class Damaged(Exception):
    """The bytes are not valid protobuf."""


def fields(data: memoryview) -> Iterator[tuple[int, memoryview | None, memoryview]]:
    """Field number, content if the field has a length, and all bytes of each field of a message."""
    position, end = 0, len(data)
    while position < end:
        start = position
        tag, position = read_varint(data, position)
        if tag > _LARGEST_TAG:
            raise Damaged("a field number that is too large")
        wire = tag & 7
        body = None
        if wire == _VARINT:
            _, position = read_varint(data, position)
        elif wire == _BYTES:
            size, position = read_varint(data, position)
            body = data[position : position + size]
            position += size
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise Damaged(f"wire type {wire}")
        if position > end:
            raise Damaged("cut short")
        yield tag >> 3, body, data[start:position]


def integers(body: memoryview | None, whole: memoryview) -> list[int]:
    """The numbers of a field from `fields`: one, or several packed into one field."""
    if body is None:
        _, position = read_varint(whole, 0)
        return [read_varint(whole, position)[0]]
    numbers, position = [], 0
    while position < len(body):
        number, position = read_varint(body, position)
        numbers.append(number)
    return numbers


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise Damaged("cut short")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise Damaged("endless number")


def text(data: memoryview) -> str:
    """The content of a field as text."""
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        raise Damaged("text that is not UTF-8") from None


def frame(number: int, size: int) -> bytes:
    """The bytes before the content of a field that has a length."""
    return _encode(number << 3 | _BYTES) + _encode(size)


def framed(number: int, content: bytes | str) -> bytes:
    """A field with its content."""
    data = content.encode() if isinstance(content, str) else content
    return frame(number, len(data)) + data


def integer(number: int, value: int) -> bytes:
    """A field with a number."""
    return _encode(number << 3 | _VARINT) + _encode(value)


def _encode(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
