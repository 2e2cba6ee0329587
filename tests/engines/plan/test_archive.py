import hashlib
import io
import os
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from disa.engines.plan.archive import (
    ALIGNMENT,
    PAGE,
    ArchiveError,
    ArchiveWriter,
    read_directory,
    safe_name,
)

GIB = 1 << 30
MEMBERS = {
    "manifest.json": b"{}",
    "graphs/a.onnx": b"x" * 100,
    "graphs/a.data": b"y" * 9000,
    "e": b"",
}


def write(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    archive = ArchiveWriter(file)
    for name, data in members.items():
        archive.add(name, len(data), [data[:50], data[50:]])
    archive.finish()
    return file.getvalue()


def reader(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, size: data[offset : offset + size]


def test_members_come_back_where_the_directory_says() -> None:
    data = write(MEMBERS)
    entries = read_directory(reader(data), len(data))
    assert {e.name: data[e.offset : e.offset + e.size] for e in entries} == MEMBERS
    assert all(entry.offset % ALIGNMENT == 0 for entry in entries)
    assert entries[2].offset % PAGE == 0


def test_large_members_begin_on_a_page() -> None:
    data = write({"a": b"x" * 4095, "b": b"y" * 4096, "c": b"z"})
    small, large, last = read_directory(reader(data), len(data))
    assert small.offset % 64 == 0 < small.offset % 4096
    assert large.offset % 4096 == 0
    # No more is left free than has to be.
    assert large.offset - (small.offset + small.size) < 4096 + 100
    assert last.offset - (large.offset + large.size) < 64 + 100


def test_plans_of_earlier_versions_are_read() -> None:
    """These bytes never change: they are what every plan is made of."""
    assert hashlib.sha256(_GOOD).hexdigest() == (
        "e7f0dc210edcee9061b1bf028655e6be10246c2e731e6ce07412b5c219b18ba1"
    )


def test_any_unzip_program_reads_it() -> None:
    with zipfile.ZipFile(io.BytesIO(write(MEMBERS))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == MEMBERS


def test_a_member_can_be_replaced_by_one_of_its_size() -> None:
    file = io.BytesIO()
    archive = ArchiveWriter(file)
    archive.add("a", 3, [b"old"])
    archive.add("b", 4, [b"next"])
    archive.replace("a", b"new")
    with pytest.raises(ArchiveError, match="cannot change size from 3 to 4"):
        archive.replace("a", b"long")
    archive.finish()
    with zipfile.ZipFile(file) as unzipped:
        assert unzipped.testzip() is None
        assert (unzipped.read("a"), unzipped.read("b")) == (b"new", b"next")


@pytest.mark.parametrize("chunks", [[b"12"], [b"12", b"34"]])
def test_a_source_that_changes_its_size_is_an_error(chunks: list[bytes]) -> None:
    with pytest.raises(ArchiveError, match="a changed its size"):
        ArchiveWriter(io.BytesIO()).add("a", 3, chunks)


class SparseFile(io.FileIO):
    """Leaves a hole where zeros are written, so that gigabytes cost nothing."""

    ZEROS = memoryview(bytes(GIB // 4))

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if data is self.ZEROS:
            self.truncate(self.seek(len(data), os.SEEK_CUR))
            return len(data)
        return super().write(data)


def zeros(gigabytes: int) -> Iterator[memoryview]:
    return iter([SparseFile.ZEROS] * (4 * gigabytes))


def test_members_beyond_4_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes and positions beyond 32 bits; checksums of the zeros are left out, as too slow."""
    monkeypatch.setattr("disa.engines.plan.archive.zlib.crc32", lambda data, crc=0: 0)
    with SparseFile(tmp_path / "large", "w+") as file:
        archive = ArchiveWriter(file)
        archive.add("first", 5 * GIB, zeros(5))
        archive.add("exact", 4 * GIB, zeros(4))
        archive.add("small", 3, [b"abc"])
        archive.finish()
        size = file.seek(0, os.SEEK_END)
        entries = read_directory(lambda at, count: os.pread(file.fileno(), count, at), size)
        with zipfile.ZipFile(file) as unzipped:
            infos = unzipped.infolist()
    assert [(e.name, e.size) for e in entries] == [
        ("first", 5 * GIB),
        ("exact", 4 * GIB),
        ("small", 3),
    ]
    assert [(i.filename, i.file_size, i.compress_size) for i in infos] == [
        (e.name, e.size, e.size) for e in entries
    ]
    assert entries[2].offset > 9 * GIB
    assert infos[2].header_offset > 9 * GIB


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("manifest.json", True),
        ("graphs/head.onnx", True),
        ("a b", False),
        ("", False),
        ("/etc/passwd", False),
        ("../up", False),
        ("a/../../b", False),
        ("a//b", False),
        ("./a", False),
        ("a\\b", False),
        ("C:a", False),
        ("a\x00b", False),
        ("ä", False),
        ("a" * 1024, True),
        ("a" * 1025, False),
        ("!~", True),
        ("a\x7f", False),
    ],
)
def test_safe_names(name: str, safe: bool) -> None:
    assert safe_name(name) == safe


def zipped(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def _twice() -> bytes:
    file = io.BytesIO()
    archive = ArchiveWriter(file)
    archive.add("a", 1, [b"1"])
    archive.add("a", 1, [b"2"])
    archive.finish()
    return file.getvalue()


def _stuffed() -> bytes:
    file = io.BytesIO()
    archive = ArchiveWriter(file)
    archive.add("a", 1, [b"1"])
    file.write(b"hidden")
    archive.finish()
    return file.getvalue()


def _renamed(to: bytes) -> bytes:
    return write({"a/name": b"data"}).replace(b"a/name", to)


def _patched(find: bytes, offset: int, value: bytes) -> bytes:
    data = bytearray(write(MEMBERS))
    at = data.rindex(find) + offset
    data[at : at + len(value)] = value
    return bytes(data)


def _counted(count: int) -> bytes:
    """A directory that claims so many members."""
    data = bytearray(write(MEMBERS))
    struct.pack_into("<2Q", data, data.rindex(b"PK\x06\x06") + 24, count, count)
    struct.pack_into("<2H", data, data.rindex(b"PK\x05\x06") + 8, count, count)
    return bytes(data)


_GOOD = write(MEMBERS)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (b"PK\x03\x04" + bytes(93), "too short"),
        (b"PK\x03\x04" + bytes(94), "incomplete copy"),
        (_counted(0), "data that belongs to no member|claims 0 members"),
        (_counted(3), "longer than its members need"),
        (_counted(5), "cut short"),
        (b"\x80" * 5000, "does not begin like a plan"),
        (_GOOD[:-1], "incomplete copy"),
        (_GOOD[: len(_GOOD) // 2], "incomplete copy"),
        (_GOOD + b"x", "incomplete copy"),
        (b"x" + _GOOD, "does not begin"),
        (_GOOD[:200] + _GOOD[201:], "damaged"),
        (zipped(("manifest.json", b"{}" * 99)), "incomplete copy"),
        (_twice(), "two members named a"),
        (_stuffed(), "data that belongs to no member"),
        (_renamed(b"../bad"), "unsafe name '../bad'"),
        (_renamed(b"/badly"), "unsafe name"),
        (_renamed(b"a\x00name"[:6]), "unsafe name"),
        (_patched(b"PK\x01\x02", 10, b"\x08\x00"), "compressed"),
        (_patched(b"PK\x01\x02", 20, b"\x09"), "compressed"),
        (_patched(b"PK\x01\x02", 42, struct.pack("<I", 7)), "not where it should be"),
        (_patched(b"PK\x01\x02", 42, b"\xff\xff\xff\xff"), "damaged"),
        (_patched(b"graphs/a.data", -18, struct.pack("<2H", 12, 1)), "damaged"),
        (_patched(b"graphs/a.data", -18, struct.pack("<2H", 13, 13)), "damaged"),
        (_patched(b"PK\x06\x06", 32, struct.pack("<Q", 2**62)), "damaged"),
        (_patched(b"PK\x06\x06", 24, struct.pack("<2Q", 2**40, 2**40)), "damaged"),
        (_patched(b"PK\x06\x07", 8, struct.pack("<Q", 2**63)), "damaged"),
    ],
)
def test_hostile_and_damaged_files(data: bytes, message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        read_directory(reader(data), len(data))


def test_a_directory_that_claims_too_much_is_not_read() -> None:
    """No more is read than a directory of the claimed number of members can need."""
    members = {f"m{i}": b"" for i in range(4097)}
    data = write(members)
    sizes: list[int] = []

    def read(offset: int, size: int) -> bytes:
        sizes.append(size)
        return data[offset : offset + size]

    with pytest.raises(ArchiveError, match="claims 4097 members"):
        read_directory(read, len(data))
    assert max(sizes) < 200


def _directory_of(size: int) -> bytes:
    """A file that claims a directory of one member, of so many bytes."""
    data = bytearray(write({"a": bytes(5000)}))
    end = data.rindex(b"PK\x06\x06")
    struct.pack_into("<2Q", data, end + 40, size, end - size)
    struct.pack_into("<2I", data, data.rindex(b"PK\x05\x06") + 12, size, end - size)
    return bytes(data)


def test_the_largest_directory_of_a_member() -> None:
    """46 bytes, the longest name, and three numbers of 64 bits with their header of 4."""
    largest = 46 + 1024 + 4 + 3 * 8
    for size, message in (
        (largest, "unsafe name"),
        (largest + 1, f"claims 1 members in {largest + 1} bytes"),
    ):
        data = _directory_of(size)
        with pytest.raises(ArchiveError, match=message):
            read_directory(reader(data), len(data))


def test_as_many_members_with_names_as_long_as_may_be() -> None:
    for members in ({f"{i}": b"" for i in range(4096)}, {letter * 1024: b"" for letter in "ab"}):
        data = write(members)
        entries = read_directory(reader(data), len(data))
        assert [entry.name for entry in entries] == list(members)
