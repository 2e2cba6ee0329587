"""Images as one .npz file, in the format of ADM's evaluator."""

import math
import zipfile
from collections.abc import Iterable, Iterator
from typing import IO, BinaryIO

import numpy as np
import numpy.typing as npt

from ....errors import DisaError
from ...replay.npz_file import METHODS, UNREADABLE
from ..image_files import MAX_PIXELS, SUFFIXES, ImageFile
from ..selection import ImageRow
from .format import StoredImage

SAMPLES = "samples.npz"
PIXELS, CONDITIONS = "arr_0.npy", "arr_1.npy"
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The timestamps in the archive, so that equal images give equal bytes."""


class Npz:
    """One file of all images; implements `Container`.

    `arr_0` is uint8 [images, H, W, channels], `arr_1` has the classes or prompts. The format is
    that of `numpy.savez`, but written image by image: all images may not fit into memory.
    """

    latents, folder = False, ""

    def name(self, number: int) -> str:
        return SAMPLES

    def number(self, name: str) -> int | None:
        return 0 if name == SAMPLES else None

    def write(self, file: BinaryIO, images: Iterable[StoredImage], count: int) -> None:
        """Write a file.

        Raises:
            DisaError: the images are latents, or an image has another size than the first.
        """
        conditions: list[int | str] = []
        with zipfile.ZipFile(file, "w") as archive:
            info = zipfile.ZipInfo(PIXELS, _EPOCH)
            with archive.open(info, "w", force_zip64=True) as member:
                shape: tuple[int, ...] | None = None
                for image in images:
                    pixels = _pixels(image, shape)
                    if shape is None:
                        shape = pixels.shape
                        header = {
                            "descr": "|u1",
                            "fortran_order": False,
                            "shape": (count, *shape),
                        }
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(pixels.tobytes())
                    conditions.append(image.row.condition)
            with archive.open(zipfile.ZipInfo(CONDITIONS, _EPOCH), "w") as member:
                np.save(member, np.array(conditions))

    def read(self, file: BinaryIO, rows: Iterable[ImageRow], where: str) -> Iterator[StoredImage]:
        damaged = DisaError(f"{where} is damaged: delete it and run again to generate it")
        rows = list(rows)
        try:
            with zipfile.ZipFile(file) as archive, archive.open(PIXELS) as member:
                count, height, width, channels = _shape(archive, member)
                if count != len(rows):
                    raise damaged
                for row in rows:
                    data = member.read(height * width * channels)
                    if len(data) != height * width * channels:
                        raise damaged
                    raw = ImageFile("raw", data, height, width)
                    yield StoredImage(row, raw, f"{where}: image {row.index}")
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # The disk, not the content.
            raise damaged from error


def image_count(file: BinaryIO) -> int | None:
    """The number of images in a file of `Npz`; None if it is damaged."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open(PIXELS) as member:
            return _shape(archive, member)[0]
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The disk, not the content.
        return None


def _shape(archive: zipfile.ZipFile, member: IO[bytes]) -> tuple[int, int, int, int]:
    """Read the header of the pixels: images, height, width, channels.

    Raises:
        ValueError: it is not one that `Npz` writes.
    """
    if archive.getinfo(PIXELS).compress_type not in METHODS:
        raise ValueError("it is compressed with another method than NumPy's")
    np.lib.format.read_magic(member)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
    if fortran or dtype != np.uint8 or len(shape) != 4:
        raise ValueError("it does not have uint8 images")
    if any(type(side) is not int or side < 1 for side in shape):
        raise ValueError("its shape is not one of images")
    if math.prod(shape[1:]) > 4 * MAX_PIXELS:
        raise ValueError("its images are too large")
    return shape


def _pixels(image: StoredImage, shape: tuple[int, ...] | None) -> npt.NDArray[np.uint8]:
    if image.file.suffix == SUFFIXES["latents"]:
        raise DisaError(
            "a plan without a decoder to pixels generates latents, which cannot be written as npz: "
            "export it with --vae"
        )
    pixels = image.pixels()
    if shape not in (None, pixels.shape):
        raise DisaError(f"{image.where} has another size than the rest: delete it and run again")
    return pixels
