"""The interface of file formats."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..image_files import ImageFile, decode_image
from ..selection import ImageRow, Selection
from ..store import Store


@dataclass(frozen=True)
class Unit:
    """Images that are generated and written together.

    Attributes:
        start: position of the first image.
        rows: the images.
        missing: indices of the rows to be written; the others exist already.
    """

    start: int
    rows: Sequence[ImageRow]
    missing: Sequence[int]

    @property
    def stop(self) -> int:
        """The position after the last image."""
        return self.start + len(self.rows)


@dataclass(frozen=True)
class Shard:
    """Consecutive images in one file: their positions from start to stop, exclusive."""

    start: int
    stop: int


@dataclass(frozen=True)
class Progress:
    """The existing part of a run.

    Attributes:
        present: for each position, 1 if its image exists.
        shards: the complete shards, whose units were deleted.
    """

    present: bytearray
    shards: frozenset[Shard] = frozenset()


@dataclass(frozen=True)
class StoredImage:
    """An image of a run in its file.

    Attributes:
        where: the file and the position in it, for errors.
    """

    row: ImageRow
    file: ImageFile
    where: str

    def pixels(self) -> npt.NDArray[np.uint8]:
        """The image, [H, W, channels].

        Raises:
            DisaError: it is damaged.
        """
        if self.file.suffix != "raw":
            return decode_image(self.file.data, self.where)
        size = self.file.height or 0, self.file.width or 0
        return np.frombuffer(self.file.data, np.uint8).reshape(*size, -1)


class Format(Protocol):
    """Writes the images of a run and reads them again.

    Writing is repeatable: the same unit or shard may be written twice, also at the same time.
    All methods raise OSError if the system does.
    """

    def write(self, store: Store, unit: Unit, files: Mapping[int, ImageFile]) -> None:
        """Write the missing images of a unit, by their indices in its rows."""
        ...

    def assemble(self, store: Store, shard: Shard, selection: Selection) -> None:
        """Join the units of a shard, which are complete."""
        ...

    def progress(self, store: Store, selection: Selection) -> Progress:
        """The existing part of the run."""
        ...

    def owned(self, store: Store, selection: Selection) -> Iterator[str]:
        """Names of the existing files of these images."""
        ...

    def read(self, store: Store, selection: Selection) -> Iterator[StoredImage]:
        """The images of a complete run in order.

        Raises:
            DisaError: a file is damaged.
        """
        ...
