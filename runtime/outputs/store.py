"""The place of a run's files: a local folder, or a URL supported by fsspec."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from ...errors import DisaError

PARTIAL = ".partial"
"""The folder of incomplete files; it is deleted when a run ends."""


Wanted = Callable[[str], bool]


def every(_: str) -> bool:
    """All sub-folders."""
    return True


class Store(Protocol):
    """Files by name relative to a place. Names have `/` between folders.

    Every method raises OSError if the system does.
    """

    appends: bool
    """Whether files can be appended to."""

    def __str__(self) -> str: ...

    def absolute(self) -> str:
        """The path or URL for other processes."""
        ...

    def write(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write, which gets its name when it is complete; a failure leaves nothing."""
        ...

    def read(self, name: str) -> BinaryIO:
        """A seekable file to read."""
        ...

    def names(self, folder: str = "", within: Wanted = every) -> Iterator[str]:
        """The files in a folder and its sub-folders; none if there is no such folder.

        Args:
            within: whether a sub-folder is wanted; folders in others are not looked into.
        """
        ...

    def top_names(self, folder: str = "") -> Iterator[str]:
        """The files in a folder that are not in a sub-folder of it."""
        ...

    def exists(self, name: str) -> bool: ...

    def remove(self, name: str) -> None:
        """Delete a file, if it exists, and then its folder if that is empty."""
        ...

    def append(self, name: str, data: bytes) -> None:
        """Append to a file."""
        ...

    def clean(self) -> None:
        """Delete what killed writers have left."""
        ...


class LocalStore:
    """A folder, created with the first file."""

    appends = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def absolute(self) -> str:
        return str(self.folder.absolute())

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        # The name is random: two workers may write the same file if one was assumed dead.
        partial = self.folder / PARTIAL / uuid.uuid4().hex
        target = self.folder / name
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                yield file
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, target)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    def read(self, name: str) -> BinaryIO:
        # Opening a FIFO would wait for ever.
        file = os.fdopen(os.open(self.folder / name, os.O_RDONLY | os.O_NONBLOCK), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", str(self.folder / name))

    def names(self, folder: str = "", within: Wanted = every) -> Iterator[str]:
        start = self.folder / folder
        if start.is_dir():
            yield from _names_below(start, f"{folder}/" if folder else "", within)

    def top_names(self, folder: str = "") -> Iterator[str]:
        start, prefix = self.folder / folder, f"{folder}/" if folder else ""
        if start.is_dir():
            with os.scandir(start) as entries:
                yield from (prefix + entry.name for entry in entries if not entry.is_dir())

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def remove(self, name: str) -> None:
        path = self.folder / name
        path.unlink(missing_ok=True)
        if path.parent != self.folder:
            with suppress(OSError):
                path.parent.rmdir()

    def append(self, name: str, data: bytes) -> None:
        with (self.folder / name).open("ab") as file:
            file.write(data)

    def clean(self) -> None:
        shutil.rmtree(self.folder / PARTIAL, ignore_errors=True)


def _names_below(folder: Path, prefix: str, within: Wanted) -> Iterator[str]:
    # pathlib creates an object for each entry, and a run may have millions.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name == PARTIAL or not within(prefix + entry.name):
                    continue
                # The top folder of a disk has lost+found, which only root may read.
                with suppress(PermissionError):
                    yield from _names_below(Path(entry.path), f"{prefix}{entry.name}/", within)
            else:
                yield prefix + entry.name


def open_store(place: str | os.PathLike[str]) -> Store:
    """The store at a path or a URL such as s3://bucket/folder.

    Raises:
        DisaError: fsspec does not support the URL's protocol here.
    """
    text = os.fspath(place)
    if "://" not in text:
        return LocalStore(Path(text))
    if text.startswith("file://"):
        return LocalStore(Path(text.removeprefix("file://")))
    from .remote import RemoteStore

    return RemoteStore(text)


@contextmanager
def storing(store: Store) -> Iterator[None]:
    """Convert errors of the system while writing to one sentence."""
    try:
        yield
    except OSError as error:
        where = error.filename or str(store)
        reason = error.strerror or error
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "it is a file or in a file, not a folder"
        raise DisaError(
            f"{where} cannot be written: {reason}: choose another folder with -o; finished files "
            "are kept"
        ) from error
