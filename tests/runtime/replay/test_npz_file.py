import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.errors import DamagedFile
from disa.runtime.replay import npz_file
from disa.runtime.replay.npz_file import MAX_ARRAY_BYTES, NpzFile

from ...fuzzing import frugal


def npy(header: str, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """A .npy file with any header."""
    text = header.encode("latin-1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + data


def write(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6, dtype=">i4"),
    np.array([True, False]),
    np.zeros((0, 3), np.int64),
    np.array(3.5),
])  # fmt: skip
def test_what_numpy_writes_is_read(save: Any, array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, x=array)
    found = NpzFile(path)
    assert found.names == {"x"}
    np.testing.assert_array_equal(found.read("x"), array)
    assert found.read("x").dtype.isnative


def test_text_only_where_it_is_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", meta=np.array("{}"), x=np.zeros(2))
    found = NpzFile(tmp_path / "a.npz")
    assert str(found.read("meta", kinds="U")) == "{}"
    with pytest.raises(DamagedFile, match="meta cannot be read: it is of type <U2"):
        found.read("meta")


FLOATS = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (npy(FLOATS % "(1099511627776,)"), "declares 4398046511104 bytes"),
        (npy(FLOATS % "(2, 3)", bytes(20)), "declares 24 bytes but has|does not match its data"),
        (npy(FLOATS % "(-1,)", bytes(4)), "negative"),
        (npy(FLOATS % str((1,) * 20), bytes(4)), "20 dimensions"),
        (npy(FLOATS.replace("<f4", "|O") % "()", b"\x80\x04N."), "of type object"),
        (npy(FLOATS.replace("<f4", "<c8") % "()", bytes(8)), "of type complex64"),
        (npy(FLOATS % "__import__('os').abort()"), "cannot be read"),
        (npy(FLOATS % ("(" * 3000)), "cannot be read"),
        (npy(FLOATS % "(1,)" + " " * 5000, bytes(4)), "cannot be read"),
        (npy(FLOATS % "(1,)", bytes(4), b"\x09\x00"), "version"),
        (npy(FLOATS % "(1,)", np.float32("nan").tobytes()), "not finite"),
        (b"", "cannot be read"),
    ],
)
def test_arrays_that_are_refused(data: bytes, told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"x.npy": data})
    with frugal(), pytest.raises(DamagedFile, match=f"the array x .*({told})"):
        NpzFile(path).read("x")


def test_a_small_file_of_much_data(tmp_path: Path) -> None:
    """A million to one: refused by what the directory says, before anything is unpacked."""
    size = MAX_ARRAY_BYTES * 4
    path = tmp_path / "bomb.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy(FLOATS % f"({size // 4},)"))
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    with frugal(), pytest.raises(DamagedFile, match="more than"):
        NpzFile(path).read("x")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_ways_of_packing_are_refused(method: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", {"x.npy": npy(FLOATS % "(1,)", bytes(4))}, method)
    with pytest.raises(DamagedFile, match="unknown method"):
        NpzFile(path).read("x")


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("hello")
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros(9))
    (tmp_path / "cut").write_bytes(buffer.getvalue()[:-30])
    for name in ("text", "cut", "."):
        with pytest.raises(DamagedFile, match=r"is not an \.npz file"):
            NpzFile(tmp_path / name)
    with pytest.raises(DamagedFile, match="missing: there is no such file"):
        NpzFile(tmp_path / "missing")
    with zipfile.ZipFile(tmp_path / "t", "w") as twice:
        twice.writestr("x.npy", b"")
        twice.writestr("x", b"")
    with pytest.raises(DamagedFile, match="an array twice"):
        NpzFile(tmp_path / "t")
    monkeypatch.setattr(npz_file, "MAX_ARRAYS", 1)
    with pytest.raises(DamagedFile, match="more than 1 arrays"):
        NpzFile(write(tmp_path / "many", {"a.npy": b"", "b.npy": b""}))
    with pytest.raises(DamagedFile, match="the array b is missing"):
        NpzFile(write(tmp_path / "one", {"a.npy": b""})).read("b")
