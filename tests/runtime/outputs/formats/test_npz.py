"""The file of ADM's evaluator."""

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from disa.errors import DisaError
from disa.runtime.outputs.formats import npz
from disa.runtime.outputs.formats.format import StoredImage
from disa.runtime.outputs.formats.npz import Npz
from disa.runtime.outputs.image_files import ImageFile, ImageType, encode_image, encode_latents
from disa.runtime.outputs.selection import ImageRow

ROWS = [ImageRow(index, index % 3, 0) for index in range(4, 8)]
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), np.uint8)


def stored(pixels: Any = PIXELS) -> list[StoredImage]:
    return [
        StoredImage(row, encode_image(image, ImageType()), f"image {row.index}")
        for row, image in zip(ROWS, pixels, strict=True)
    ]


def written(images: list[StoredImage]) -> io.BytesIO:
    file = io.BytesIO()
    Npz().write(file, images, len(images))
    return io.BytesIO(file.getvalue())


def savez(array: Any) -> io.BytesIO:
    file = io.BytesIO()
    np.savez(file, array)
    return io.BytesIO(file.getvalue())


def read(file: io.BytesIO, count: int = 4) -> list[StoredImage]:
    return list(Npz().read(file, ROWS[:count], "some.npz"))


def test_the_file_has_one_name() -> None:
    assert Npz().name(0) == "samples.npz"
    assert Npz().number("samples.npz") == 0
    assert Npz().number("sample.npz") is None


def test_what_is_written() -> None:
    file = written(stored())
    found = np.load(file)
    np.testing.assert_array_equal(found["arr_0"], PIXELS)
    assert found["arr_1"].tolist() == [1, 2, 0, 1]
    members = zipfile.ZipFile(file).infolist()
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    # Its size is not known before all is written, so the pixels may be beyond 4 GB.
    assert members[0].extract_version == zipfile.ZIP64_VERSION
    assert written(stored()).getvalue() == file.getvalue()


def test_it_is_read_again() -> None:
    for file in (written(stored()), savez(PIXELS)):
        found = read(file)
        assert [image.row for image in found] == ROWS
        assert [image.where for image in found] == [f"some.npz: image {i}" for i in range(4, 8)]
        assert found[0].file == ImageFile("raw", PIXELS[0].tobytes(), 5, 7)
        np.testing.assert_array_equal(np.stack([image.pixels() for image in found]), PIXELS)


@pytest.mark.parametrize(
    ("array", "count"),
    [
        (PIXELS, 3),
        (PIXELS[:3], 4),
        (np.asfortranarray(PIXELS), 4),
        (PIXELS.astype(np.int8), 4),
        (PIXELS.astype(np.float32), 4),
        (PIXELS[..., 0], 4),
        (PIXELS[..., None], 4),
        (np.uint8(3), 4),
    ],
)
def test_arrays_that_are_not_the_images(array: Any, count: int) -> None:
    with pytest.raises(DisaError, match=r"^some\.npz is damaged: delete it and run again"):
        read(savez(array), count)


def test_pixels_that_end_too_early() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, archive.open("arr_0.npy", "w") as member:
        header = {"descr": "|u1", "fortran_order": False, "shape": PIXELS.shape}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(PIXELS.tobytes()[:-1])
    images = Npz().read(io.BytesIO(file.getvalue()), ROWS, "some.npz")
    assert [next(images).row.index for _ in range(3)] == [4, 5, 6]
    with pytest.raises(DisaError, match="damaged"):
        next(images)


def zipped(header: bytes, method: int = zipfile.ZIP_STORED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        size = len(header).to_bytes(2, "little")
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + size + header + PIXELS.tobytes())
    return io.BytesIO(file.getvalue())


HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (4, 5, 7, 3)}\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"5, 7", b"-5, -7"),
        (b"5, 7", b"0, 7"),
        (b"5, 7, 3", b"True, 35, 3"),
        (b"'|u1'", b"()"),
        (b"}", b""),
    ],
)
def test_headers_that_numpy_does_not_write(old: bytes, new: bytes) -> None:
    assert len(read(zipped(HEADER))) == 4
    with pytest.raises(DisaError, match=r"^some\.npz is damaged"):
        [image.pixels() for image in read(zipped(HEADER.replace(old, new)))]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_pixels_that_are_damaged(method: int) -> None:
    data = bytearray(zipped(HEADER, method).getvalue())
    for place in range(200, 300):
        data[place] ^= 255
    with pytest.raises(DisaError, match=r"^some\.npz is damaged"):
        read(io.BytesIO(bytes(data)))


def test_a_member_with_a_password() -> None:
    data = bytearray(zipped(HEADER).getvalue())
    for place in (6, data.index(b"PK\x01\x02") + 8):
        data[place] |= 1
    with pytest.raises(DisaError, match=r"^some\.npz is damaged"):
        read(io.BytesIO(bytes(data)))


def test_errors_of_the_disk_are_not_damage() -> None:
    class Disk(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() < 10:  # The table of contents is at the end.
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output error"):
        read(Disk(written(stored()).getvalue()))


def test_an_image_may_have_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four channels of the largest image."""
    pixels = np.zeros((4, 6, 4, 3), np.uint8)
    monkeypatch.setattr(npz, "MAX_PIXELS", 18)
    assert len(read(savez(pixels))) == 4
    monkeypatch.setattr(npz, "MAX_PIXELS", 17)
    with pytest.raises(DisaError, match="damaged"):
        read(savez(pixels))


def test_images_of_one_size() -> None:
    images = stored([*PIXELS[:2], PIXELS[2, :4], PIXELS[3]])
    with pytest.raises(DisaError, match=r"^image 6 has another size than the rest"):
        written(images)


def test_latents_are_no_pixels() -> None:
    latents = encode_latents(np.zeros((1, 2, 2), np.float32))
    with pytest.raises(DisaError, match="cannot be written as npz: export it with --vae"):
        written([StoredImage(ROWS[0], latents, "it")])
