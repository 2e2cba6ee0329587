"""WebDataset's tar files of images: key.png, key.json, and key.cls or key.txt."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ....errors import DisaError
from ..image_files import MAX_FILE_BYTES, SUFFIXES, ImageFile
from ..selection import ImageRow
from .format import StoredImage


def write_images(file: BinaryIO, images: Iterable[StoredImage]) -> None:
    """Write a tar file. Equal images give equal bytes."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for image in images:
            for suffix, data in _members(image):
                info = tarfile.TarInfo(f"{image.row.index:06d}.{suffix}")
                info.size, info.mode = len(data), 0o644
                archive.addfile(info, io.BytesIO(data))


def _members(image: StoredImage) -> Iterator[tuple[str, bytes]]:
    row, file = image.row, image.file
    named = "class" if isinstance(row.condition, int) else "prompt"
    content: dict[str, int | str | None] = {
        "index": row.index,
        named: row.condition,
        "seed": row.seed,
    }
    if file.height is not None:
        content |= {"height": file.height, "width": file.width}
    yield file.suffix, file.data
    yield "json", json.dumps(content).encode()
    yield ("cls" if named == "class" else "txt"), str(row.condition).encode()


def read_images(file: BinaryIO, rows: Iterable[ImageRow], where: str) -> Iterator[StoredImage]:
    """The images of a tar file, compared with the expected rows.

    Args:
        where: the file, for errors.

    Raises:
        DisaError: the file is damaged or has other images.
    """
    damaged = DisaError(f"{where} is damaged: delete it and run again to generate it")
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            found: dict[str, bytes] = {}
            expected = iter(rows)
            for member in archive:
                stem, _, suffix = member.name.rpartition(".")
                # A sparse file of a few bytes may be read as a gigabyte of zeros.
                plain = member.isreg() and not member.issparse()
                content = archive.extractfile(member) if plain else None
                if content is None or member.size > MAX_FILE_BYTES:
                    raise damaged
                found[suffix] = content.read()
                if suffix in ("cls", "txt"):
                    row = next(expected, None)
                    if row is None or stem != f"{row.index:06d}":
                        raise damaged
                    yield StoredImage(row, _image_file(found, damaged), f"{where}: {stem}")
                    found = {}
            if found or next(expected, None) is not None:
                raise damaged
    except (tarfile.TarError, ValueError) as error:
        raise damaged from error


def _image_file(found: dict[str, bytes], damaged: DisaError) -> ImageFile:
    suffixes = [suffix for suffix in SUFFIXES.values() if suffix in found]
    try:
        content = json.loads(found["json"])
        size = content.get("height"), content.get("width")
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise damaged from error
    if len(suffixes) != 1 or {type(side) for side in size} not in ({int}, {type(None)}):
        raise damaged
    return ImageFile(suffixes[0], found[suffixes[0]], *size)
