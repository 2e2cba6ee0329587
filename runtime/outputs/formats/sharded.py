"""Shards: files with many images."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO, Protocol

from ....errors import DisaError
from ..image_files import SUFFIXES, ImageFile
from ..layout import Layout
from ..selection import ImageRow, Selection
from ..store import Store
from .format import Progress, Shard, StoredImage, Unit
from .members import read_images, write_images

PARTS = "parts"
_PART = re.compile(PARTS + r"/(\d{9,})-(\d{9,})\.tar")


class Container(Protocol):
    """The file format of shards."""

    latents: bool
    """Whether it can store latents."""
    folder: str
    """The folder of the shards; empty for none."""

    def name(self, number: int) -> str:
        """The file name of a shard."""
        ...

    def number(self, name: str) -> int | None:
        """The number of the shard in a file; None if the file is not a shard."""
        ...

    def write(self, file: BinaryIO, images: Iterable[StoredImage], count: int) -> None:
        """Write a shard of `count` images, with few of them in memory at a time."""
        ...

    def read(self, file: BinaryIO, rows: Iterable[ImageRow], where: str) -> Iterator[StoredImage]:
        """The images of a shard, compared with the expected rows.

        Raises:
            DisaError: the shard is damaged.
        """
        ...


class ShardedFormat:
    """Units are written as small tar files, and shards are joined from them; implements `Format`.

    A shard does not depend on the workers and the order of its units: if a worker dies, one unit is
    lost.
    """

    def __init__(self, container: Container, layout: Layout) -> None:
        self._container = container
        self._shard_images, self._unit_images = layout.shard_images, layout.unit_images

    def write(self, store: Store, unit: Unit, files: Mapping[int, ImageFile]) -> None:
        for file in files.values():
            if file.suffix == SUFFIXES["latents"] and not self._container.latents:
                raise DisaError(
                    "a plan without a decoder to pixels generates latents, which this format "
                    "cannot store: export it with --vae, or use --format png or webdataset"
                )
        name = _part_name(unit.start, unit.stop)
        images = (StoredImage(row, files[offset], name) for offset, row in enumerate(unit.rows))
        with store.write(name) as target:
            write_images(target, images)

    def assemble(self, store: Store, shard: Shard, selection: Selection) -> None:
        name = self._container.name(shard.start // self._shard_images)
        parts = [
            (start, min(start + self._unit_images, shard.stop))
            for start in range(shard.start, shard.stop, self._unit_images)
        ]
        if not store.exists(name):
            images = (
                image
                for start, stop in parts
                for image in _read_part(store, start, stop, selection)
            )
            with store.write(name) as file:
                self._container.write(file, images, shard.stop - shard.start)
        for part in parts:
            store.remove(_part_name(*part))

    def progress(self, store: Store, selection: Selection) -> Progress:
        present, shards, left = bytearray(len(selection)), set(), set()
        for name, start, stop in self._existing(store, len(selection)):
            present[start:stop] = b"\1" * (stop - start)
            if name.startswith(PARTS):
                left.add(start // self._shard_images)
            else:
                shards.add(Shard(start, stop))
        # A shard whose units are still there was not finished: `assemble` deletes them.
        finished = (shard for shard in shards if shard.start // self._shard_images not in left)
        return Progress(present, frozenset(finished))

    def owned(self, store: Store, selection: Selection) -> Iterator[str]:
        return (name for name, _, _ in self._existing(store, len(selection)))

    def read(self, store: Store, selection: Selection) -> Iterator[StoredImage]:
        for start in range(0, len(selection), self._shard_images):
            name = self._container.name(start // self._shard_images)
            rows = selection.rows(start, start + self._shard_images)
            try:
                with store.read(name) as file:
                    yield from self._container.read(file, rows, f"{store}/{name}")
            except FileNotFoundError as error:
                raise DisaError(f"{store} lacks {name}: run again to generate it") from error

    def _existing(self, store: Store, count: int) -> Iterator[tuple[str, int, int]]:
        """Names of shards and parts, and the positions of their images."""
        for name in store.top_names(self._container.folder):
            number = self._container.number(name)
            if number is not None and number * self._shard_images < count:
                start = number * self._shard_images
                yield name, start, min(start + self._shard_images, count)
        for name in store.top_names(PARTS):
            if match := _PART.fullmatch(name):
                start, stop = int(match[1]), int(match[2])
                if start < stop <= count and name == _part_name(start, stop):
                    yield name, start, stop


def _part_name(start: int, stop: int) -> str:
    return f"{PARTS}/{start:09d}-{stop:09d}.tar"


def _read_part(store: Store, start: int, stop: int, selection: Selection) -> Iterator[StoredImage]:
    name = _part_name(start, stop)
    with store.read(name) as file:
        yield from read_images(file, selection.rows(start, stop), f"{store}/{name}")
