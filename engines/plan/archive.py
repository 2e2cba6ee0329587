"""The container of a plan: a zip file of stored members whose data is aligned.

Any unzip program reads it. The reader here accepts less than they do: only what the writer here
writes, so that nothing in a damaged or hostile file is searched for or guessed. Python's `zipfile`
is not used, because it aligns nothing, searches for the directory, and accepts files that other
readers interpret differently. Layout and field names follow PKWARE's APPNOTE.TXT 6.3.10.
"""

import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

ALIGNMENT = 64
PAGE = 4096
MAX_MEMBERS = 4096
MAX_NAME = 1024

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_EXTRA = struct.Struct("<2H")

_LOCAL_MAGIC = b"PK\x03\x04"
_CENTRAL_MAGIC = b"PK\x01\x02"
_END_MAGIC = b"PK\x05\x06"
_END64_MAGIC = b"PK\x06\x06"
_LOCATOR64_MAGIC = b"PK\x06\x07"

_FULL16 = 0xFFFF
_FULL32 = 0xFFFFFFFF
_VERSION = 45
_UTF8 = 0x800
_MIDNIGHT_1980 = 0x21
_ZIP64_ID = 1
_ALIGNMENT_ID = 0xD935


class ArchiveError(Exception):
    """The file is not an archive of `ArchiveWriter`; the message says why."""


@dataclass(frozen=True)
class Entry:
    """A member: the position of its data in the file, and its zip checksum."""

    name: str
    offset: int
    size: int
    crc: int


def safe_name(name: str) -> bool:
    """Whether a member name is a plain relative path in printable ASCII."""
    return (
        len(name) <= MAX_NAME
        and all(" " < letter < "\x7f" and letter not in '\\:*?"<>|' for letter in name)
        and all(part not in ("", ".", "..") for part in name.split("/"))
    )


class ArchiveWriter:
    """Writes members one after another into a seekable file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._entries: list[tuple[Entry, int]] = []

    def add(self, name: str, size: int, chunks: Iterable[bytes | memoryview]) -> None:
        """Append a member.

        Args:
            size: its size in bytes.

        Raises:
            ArchiveError: `chunks` have another size.
        """
        file = self._file
        header = file.tell()
        file.write(_local_header(name, size, 0, header))
        offset = file.tell()
        crc = written = 0
        for chunk in chunks:
            written += len(chunk)
            if written > size:
                break
            file.write(chunk)
            crc = zlib.crc32(chunk, crc)
        if written != size:
            raise ArchiveError(f"{name} changed its size while it was copied")
        self._entries.append((Entry(name, offset, size, crc), header))
        self._patch(name, size, crc, header)

    def replace(self, name: str, data: bytes) -> None:
        """Replace the data of a member with other data of the same size."""
        index = next(i for i, (entry, _) in enumerate(self._entries) if entry.name == name)
        entry, header = self._entries[index]
        if len(data) != entry.size:
            raise ArchiveError(f"{name} cannot change size from {entry.size} to {len(data)}")
        entry = Entry(name, entry.offset, entry.size, zlib.crc32(data))
        self._entries[index] = (entry, header)
        self._file.seek(entry.offset)
        self._file.write(data)
        self._patch(name, entry.size, entry.crc, header)

    def finish(self) -> None:
        """Write the directory."""
        file = self._file
        start = file.seek(0, os.SEEK_END)
        for entry, header in self._entries:
            file.write(_central_header(entry, header))
        end = file.tell()
        count, size = len(self._entries), end - start
        file.write(
            _END64.pack(_END64_MAGIC, 44, _VERSION, _VERSION, 0, 0, count, count, size, start)
        )
        file.write(_LOCATOR64.pack(_LOCATOR64_MAGIC, 0, end, 1))
        small = (min(count, _FULL16), min(count, _FULL16), min(size, _FULL32), min(start, _FULL32))
        file.write(_END.pack(_END_MAGIC, 0, 0, *small, 0))

    def _patch(self, name: str, size: int, crc: int, header: int) -> None:
        self._file.seek(header)
        self._file.write(_local_header(name, size, crc, header))
        self._file.seek(0, os.SEEK_END)


def _local_header(name: str, size: int, crc: int, position: int) -> bytes:
    encoded = name.encode("ascii")
    zip64 = _EXTRA.pack(_ZIP64_ID, 16) + struct.pack("<2Q", size, size) if size >= _FULL32 else b""
    start = position + _LOCAL.size + len(encoded) + len(zip64) + _EXTRA.size + 2
    alignment = PAGE if size >= PAGE else ALIGNMENT
    padding = bytes(-start % alignment)
    aligned = _EXTRA.pack(_ALIGNMENT_ID, 2 + len(padding)) + struct.pack("<H", alignment) + padding
    extra = zip64 + aligned
    small = min(size, _FULL32)
    return (
        _LOCAL.pack(
            _LOCAL_MAGIC, _VERSION, _UTF8, 0, 0, _MIDNIGHT_1980, crc, small, small,
            len(encoded), len(extra),
        )
        + encoded
        + extra
    )  # fmt: skip


def _central_header(entry: Entry, header: int) -> bytes:
    encoded = entry.name.encode("ascii")
    large = [value for value in (entry.size, entry.size, header) if value >= _FULL32]
    extra = _EXTRA.pack(_ZIP64_ID, 8 * len(large)) + struct.pack(f"<{len(large)}Q", *large)
    if not large:
        extra = b""
    small = min(entry.size, _FULL32)
    return (
        _CENTRAL.pack(
            _CENTRAL_MAGIC, _VERSION, _VERSION, _UTF8, 0, 0, _MIDNIGHT_1980, entry.crc,
            small, small, len(encoded), len(extra), 0, 0, 0, 0, min(header, _FULL32),
        )
        + encoded
        + extra
    )  # fmt: skip


def read_directory(read: Callable[[int, int], bytes], file_size: int) -> list[Entry]:
    """The members of an archive, in file order.

    Args:
        read: `read(offset, size)` returns that range of the file. Nothing larger than the directory
            is read.

    Raises:
        ArchiveError: the file is not exactly what `ArchiveWriter` writes.
    """
    start, size, count = _find_directory(read, file_size)
    directory = read(start, size)
    entries = list(_entries(directory, count))
    end = 0
    names = set()
    checked = []
    for entry, header in entries:
        if entry.name in names:
            raise ArchiveError(f"it has two members named {entry.name}")
        names.add(entry.name)
        if header != end:
            raise ArchiveError(f"its member {entry.name} is not where it should be")
        offset = _data_offset(read, entry, header)
        end = offset + entry.size
        if end > start:
            raise ArchiveError(f"its member {entry.name} reaches beyond the end of the data")
        checked.append(Entry(entry.name, offset, entry.size, entry.crc))
    if end != start:
        raise ArchiveError("it has data that belongs to no member")
    return checked


def _find_directory(read: Callable[[int, int], bytes], file_size: int) -> tuple[int, int, int]:
    tail_size = _END64.size + _LOCATOR64.size + _END.size
    if file_size < tail_size:
        raise ArchiveError("it is too short")
    if read(0, 4) != _LOCAL_MAGIC:
        raise ArchiveError("it does not begin like a plan")
    tail = read(file_size - tail_size, tail_size)
    end64 = _END64.unpack_from(tail)
    locator = _LOCATOR64.unpack_from(tail, _END64.size)
    count, size, start = end64[7:]
    if (
        end64[:6] != (_END64_MAGIC, 44, _VERSION, _VERSION, 0, 0)
        or end64[6] != count
        or locator != (_LOCATOR64_MAGIC, 0, file_size - tail_size, 1)
        or start + size != file_size - tail_size
    ):
        raise ArchiveError("its directory is missing or damaged, as after an incomplete copy")
    small = (min(count, _FULL16), min(count, _FULL16), min(size, _FULL32), min(start, _FULL32))
    if tail[-_END.size :] != _END.pack(_END_MAGIC, 0, 0, *small, 0):
        raise ArchiveError("its directory is missing or damaged, as after an incomplete copy")
    if count > MAX_MEMBERS or size > count * (_CENTRAL.size + MAX_NAME + 28):
        raise ArchiveError(f"its directory claims {count} members in {size} bytes")
    return start, size, count


def _entries(directory: bytes, count: int) -> Iterator[tuple[Entry, int]]:
    position = 0
    for _ in range(count):
        if position + _CENTRAL.size > len(directory):
            raise ArchiveError("its directory is cut short")
        fields = _CENTRAL.unpack_from(directory, position)
        name_size, extra_size = fields[10:12]
        begin = position + _CENTRAL.size
        name = _name(directory[begin : begin + name_size])
        position = begin + name_size + extra_size
        extra = directory[position - extra_size : position]
        if fields[4] != 0:
            raise ArchiveError(f"its member {name} is compressed")
        size, header = _wide(name, extra, fields[8], fields[9], fields[16])
        entry = Entry(name, 0, size, fields[7])
        if directory[begin - _CENTRAL.size : position] != _central_header(entry, header):
            raise ArchiveError(f"its directory entry of {name} is damaged")
        yield entry, header
    if position != len(directory):
        raise ArchiveError("its directory is longer than its members need")


def _wide(name: str, extra: bytes, compressed: int, size: int, header: int) -> tuple[int, int]:
    """Size and header position, from the zip64 field if they exceed 32 bits."""
    if compressed != size:
        raise ArchiveError(f"its member {name} is compressed")
    numbers = extra[_EXTRA.size :]
    wide = [value for (value,) in struct.iter_unpack("<Q", numbers[: len(numbers) // 8 * 8])]
    expected = 2 * (size == _FULL32) + (header == _FULL32)
    if len(wide) != expected:
        raise ArchiveError(f"its directory entry of {name} is damaged")
    if header == _FULL32:
        header = wide.pop()
    if size == _FULL32:
        size = wide.pop()
    return size, header


def _data_offset(read: Callable[[int, int], bytes], entry: Entry, header: int) -> int:
    expected = _local_header(entry.name, entry.size, entry.crc, header)
    if read(header, len(expected)) != expected:
        raise ArchiveError(f"the header of its member {entry.name} is damaged")
    return header + len(expected)


def _name(encoded: bytes) -> str:
    name = encoded.decode("ascii", "replace")
    if not safe_name(name):
        raise ArchiveError(f"it has a member with the unsafe name {name[:80]!r}")
    return name
