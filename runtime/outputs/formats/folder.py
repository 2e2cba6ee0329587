"""One file for each image."""

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from ....errors import DisaError
from ..image_files import SUFFIXES, ImageFile
from ..selection import Selection
from ..store import Store
from .format import Progress, Shard, StoredImage, Unit

FOLDER_IMAGES = 10_000
_NUMBERED = re.compile(r"(?:(\d{4,})/)?(\d{6,})")


class Naming(Protocol):
    """Names of images without their suffixes."""

    def name(self, index: int) -> str: ...

    def index(self, name: str) -> int | None:
        """The image with a name; None if it is not the name of an image."""
        ...


class Numbered:
    """000000 to 009999, then a sub-folder for each further ten thousand: 0001/010000."""

    def name(self, index: int) -> str:
        folder = index // FOLDER_IMAGES
        return f"{folder:04d}/{index:06d}" if folder else f"{index:06d}"

    def index(self, name: str) -> int | None:
        match = _NUMBERED.fullmatch(name)
        if not match:
            return None
        index = int(match[2])
        # Runs of version 1 have all images in one folder.
        return index if name in (self.name(index), f"{index:06d}") else None


class FolderFormat:
    """One file for each image; implements `Format`.

    Args:
        naming: the names of the files.
        suffix: of images; latents have their own suffix.
    """

    def __init__(self, naming: Naming, suffix: str) -> None:
        self._naming = naming
        self._suffixes = (suffix, SUFFIXES["latents"])

    def write(self, store: Store, unit: Unit, files: Mapping[int, ImageFile]) -> None:
        for offset in unit.missing:
            row, file = unit.rows[offset], files[offset]
            with store.write(f"{self._naming.name(row.index)}.{file.suffix}") as target:
                target.write(file.data)

    def assemble(self, store: Store, shard: Shard, selection: Selection) -> None:
        raise AssertionError("a folder has no shards")

    def progress(self, store: Store, selection: Selection) -> Progress:
        present = bytearray(len(selection))
        for position, _ in self._existing(store, selection):
            present[position] = 1
        return Progress(present)

    def owned(self, store: Store, selection: Selection) -> Iterator[str]:
        return (name for _, name in self._existing(store, selection))

    def read(self, store: Store, selection: Selection) -> Iterator[StoredImage]:
        names = dict(self._existing(store, selection))
        for position, row in enumerate(selection.rows(0, len(selection))):
            if position not in names:
                raise DisaError(f"{store} lacks image {row.index}: run again to generate it")
            name = names[position]
            with store.read(name) as file:
                content = ImageFile(name.rpartition(".")[2], file.read())
            yield StoredImage(row, content, f"{store}/{name}")

    def _existing(self, store: Store, selection: Selection) -> Iterator[tuple[int, str]]:
        for name in store.names():
            stem, _, suffix = name.rpartition(".")
            if suffix in self._suffixes:
                index = self._naming.index(stem)
                position = None if index is None else selection.position(index)
                if position is not None:
                    yield position, name
