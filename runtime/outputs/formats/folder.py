"""One file for each image."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import Protocol

from ....errors import DisaError
from ..image_files import AGAIN, MAX_FILE_BYTES, SUFFIXES, ImageFile
from ..selection import ImageRow, Selection
from ..store import Store
from .format import Progress, Shard, StoredImage, Unit

FOLDER_IMAGES = 10_000
ROWS = 1000
"""Images that are looked up together."""
_NUMBERED = re.compile(r"(?:(\d{4,})/)?(\d{6,})")


class Naming(Protocol):
    """Names of images without their suffixes."""

    def name(self, index: int) -> str: ...

    def earlier_name(self, index: int) -> str:
        """The name in runs of version 1."""
        ...

    def folders(self, indices: Sequence[int]) -> Set[str]:
        """The folders that have these images, and the folders above them."""
        ...

    def index(self, name: str) -> int | None:
        """The image with a name; None if it is not the name of an image."""
        ...


class Numbered:
    """000000 to 009999, then a sub-folder for each further ten thousand: 0001/010000."""

    def name(self, index: int) -> str:
        folder = index // FOLDER_IMAGES
        return f"{folder:04d}/{index:06d}" if folder else f"{index:06d}"

    def earlier_name(self, index: int) -> str:
        # All images were in one folder.
        return f"{index:06d}"

    @staticmethod
    def is_folder(name: str) -> bool:
        """Whether a folder may have images of any run."""
        return re.fullmatch(r"\d{4,}", name) is not None

    def folders(self, indices: Sequence[int]) -> Set[str]:
        if isinstance(indices, range):
            numbers: Iterable[int] = range(
                indices[0] // FOLDER_IMAGES, indices[-1] // FOLDER_IMAGES + 1
            )
        else:
            numbers = {index // FOLDER_IMAGES for index in indices}
        return {f"{number:04d}" for number in numbers if number}

    def index(self, name: str) -> int | None:
        match = _NUMBERED.fullmatch(name)
        if not match:
            return None
        index = int(match[2])
        return index if name in (self.name(index), self.earlier_name(index)) else None


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
        for start in range(0, len(selection), ROWS):
            for row in selection.rows(start, start + ROWS):
                yield self._image(store, row)

    def _image(self, store: Store, row: ImageRow) -> StoredImage:
        stems = dict.fromkeys((self._naming.name(row.index), self._naming.earlier_name(row.index)))
        for stem, suffix in itertools.product(stems, self._suffixes):
            name = f"{stem}.{suffix}"
            with suppress(FileNotFoundError, NotADirectoryError), store.read(name) as file:
                data = file.read(MAX_FILE_BYTES + 1)
                if len(data) > MAX_FILE_BYTES:
                    raise DisaError(f"{store}/{name} is damaged: {AGAIN}")
                return StoredImage(row, ImageFile(suffix, data), f"{store}/{name}")
        raise DisaError(f"{store} lacks image {row.index}: run again to generate it")

    def _existing(self, store: Store, selection: Selection) -> Iterator[tuple[int, str]]:
        folders = self._naming.folders(selection.indices)
        for name in store.names(within=folders.__contains__):
            stem, _, suffix = name.rpartition(".")
            if suffix in self._suffixes:
                index = self._naming.index(stem)
                position = None if index is None else selection.position(index)
                if position is not None:
                    yield position, name
