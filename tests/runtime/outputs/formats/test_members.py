"""Tar files of images: what is in one, and what is refused."""

import io
import json
import tarfile
from collections.abc import Sequence

import numpy as np
import pytest

from disa.errors import DisaError
from disa.runtime.outputs.formats import members
from disa.runtime.outputs.formats.format import StoredImage
from disa.runtime.outputs.formats.members import read_images, write_images
from disa.runtime.outputs.image_files import ImageFile, ImageType, encode_image
from disa.runtime.outputs.selection import ImageRow

ROWS = [ImageRow(3, 7, 11), ImageRow(1_234_567, "a dög", 12)]
FILES = [ImageFile("png", b"pixels", 4, 6), ImageFile("npy", b"latents")]
Members = Sequence[tuple[str, bytes]]
WHOLE = [("000003.png", b"pixels"), ("000003.json", b"{}"), ("000003.cls", b"7")]


def tar(*entries: tuple[str, bytes]) -> io.BytesIO:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return io.BytesIO(file.getvalue())


def written() -> bytes:
    file = io.BytesIO()
    stored = [StoredImage(row, each, "it") for row, each in zip(ROWS, FILES, strict=True)]
    write_images(file, stored)
    return file.getvalue()


def test_what_is_in_a_file() -> None:
    with tarfile.open(fileobj=io.BytesIO(written())) as archive:
        entries = archive.getmembers()
        found = {each.name: archive.extractfile(each).read() for each in entries}  # type: ignore[union-attr]
    assert {(each.mode, each.mtime, each.uid, each.uname) for each in entries} == {
        (0o644, 0, 0, "")
    }
    described = {name: json.loads(data) for name, data in found.items() if name.endswith("json")}
    assert described == {
        "000003.json": {"index": 3, "class": 7, "seed": 11, "height": 4, "width": 6},
        "1234567.json": {"index": 1_234_567, "prompt": "a dög", "seed": 12},
    }
    assert {name: data for name, data in found.items() if name not in described} == {
        "000003.png": b"pixels",
        "000003.cls": b"7",
        "1234567.npy": b"latents",
        "1234567.txt": "a dög".encode(),
    }


def test_it_is_read_again() -> None:
    found = list(read_images(io.BytesIO(written()), ROWS, "some.tar"))
    assert [image.row for image in found] == ROWS
    assert [image.file for image in found] == FILES
    assert [image.where for image in found] == ["some.tar: 000003", "some.tar: 1234567"]


def test_pixels_of_a_read_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    file = io.BytesIO()
    write_images(file, [StoredImage(ROWS[0], encode_image(pixels, ImageType()), "it")])
    (found,) = read_images(io.BytesIO(file.getvalue()), ROWS[:1], "it")
    assert (found.file.height, found.file.width) == (5, 7)
    np.testing.assert_array_equal(found.pixels(), pixels)


@pytest.mark.parametrize(
    "entries",
    [
        [],
        WHOLE[:2],
        [*WHOLE, ("000004.png", b"")],
        WHOLE + [(f"000004.{name.partition('.')[2]}", data) for name, data in WHOLE],
        [(name.replace("3", "4"), data) for name, data in WHOLE],
        [(f"0{name}", data) for name, data in WHOLE],
        WHOLE[1:],
        [WHOLE[0], WHOLE[2]],
        [("000003.jpg", b""), *WHOLE],
        [WHOLE[0], ("000003.json", b"{"), WHOLE[2]],
        [WHOLE[0], ("000003.json", b"[]"), WHOLE[2]],
        [WHOLE[0], ("000003.json", b'{"height": 4}'), WHOLE[2]],
        [WHOLE[0], ("000003.json", b'{"height": 4, "width": 1.5}'), WHOLE[2]],
        [WHOLE[0], ("000003.json", b'{"height": "4", "width": "4"}'), WHOLE[2]],
    ],
)
def test_files_that_do_not_have_the_image(entries: Members) -> None:
    assert len(list(read_images(tar(*WHOLE), ROWS[:1], "it"))) == 1
    with pytest.raises(DisaError, match=r"^some\.tar is damaged: delete it and run again"):
        list(read_images(tar(*entries), ROWS[:1], "some.tar"))


def test_folders_and_links_are_no_images() -> None:
    for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as archive:
            info = tarfile.TarInfo("000003.png")
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
        with pytest.raises(DisaError, match="damaged"):
            list(read_images(io.BytesIO(file.getvalue()), ROWS[:1], "it"))


def test_a_member_may_have_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MAX_FILE_BYTES", 6)
    assert len(list(read_images(tar(*WHOLE), ROWS[:1], "it"))) == 1
    monkeypatch.setattr(members, "MAX_FILE_BYTES", 5)
    with pytest.raises(DisaError, match="damaged"):
        list(read_images(tar(*WHOLE), ROWS[:1], "it"))


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "a,b"},
        {"GNU.sparse.map": "0,1", "GNU.sparse.size": "many"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.map": "999,1", "GNU.sparse.size": "1000"},
    ],
)
def test_sparse_files_are_no_images(headers: dict[str, str]) -> None:
    """A traceback of tarfile, or a gigabyte of zeros from a file of some bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in WHOLE:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("png"):
                info.pax_headers = headers
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(DisaError, match="damaged"):
        list(read_images(io.BytesIO(file.getvalue()), ROWS[:1], "it"))
