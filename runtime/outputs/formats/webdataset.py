"""Shards for the `webdataset` package."""

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ..selection import ImageRow
from .format import StoredImage
from .members import read_images, write_images

_NAME = re.compile(r"(\d{6,})\.tar")


class WebDataset:
    """Tar files 000000.tar, 000001.tar, ...; implements `Container`."""

    latents, folder = True, ""

    def name(self, number: int) -> str:
        return f"{number:06d}.tar"

    def number(self, name: str) -> int | None:
        match = _NAME.fullmatch(name)
        return int(match[1]) if match and name == self.name(int(match[1])) else None

    def write(self, file: BinaryIO, images: Iterable[StoredImage], count: int) -> None:
        write_images(file, images)

    def read(self, file: BinaryIO, rows: Iterable[ImageRow], where: str) -> Iterator[StoredImage]:
        return read_images(file, rows, where)
