"""Files that are written completely or not at all, and read only up to a size limit."""

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from .errors import DisaError

MIB = 1 << 20
DEVICES = Path("/dev")


@contextmanager
def written_whole(path: Path, *, shared: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing, which appears at `path` when it is complete.

    If the block fails, the file is removed.

    Args:
        shared: whether several processes may write the file at once: the last one wins. Each
            process then uses its own temporary name, so it never reuses a file of a killed one.

    Raises:
        OSError: it cannot be written, or is not a regular file.
    """
    check_replaceable(path)
    own = f".{os.getpid()}" if shared else ""
    partial = path.with_name(f".{path.name}{own}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def check_replaceable(path: Path) -> None:
    """Check that a new file may take the place of what is at `path`, if anything is there.

    Root would replace /dev/null for all processes, and /dev/stdout, whatever that refers to.

    Raises:
        OSError: it is a device, a pipe or a socket, or is in /dev.
    """
    special = path.exists() and not (path.is_file() or path.is_dir())
    if special or path.parent.resolve() == DEVICES:
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading.

    Pipes, sockets, terminals and devices are refused without waiting for them: reading them may
    hang or never end.

    Raises:
        OSError: the file cannot be opened or is not a regular file.
    """
    flags = os.O_RDONLY
    for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        descriptor = os.open(path, flags)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"its name is not usable ({error})") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """Read a regular file.

    Args:
        most: largest size in bytes.

    Raises:
        DisaError: the file cannot be read or is larger than `most`.
    """
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise DisaError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DisaError(f"{str(path)!r} is not a file name: {error}") from error
    if len(data) > most:
        raise DisaError(f"{path}: it is larger than {most // MIB} MiB: give another file")
    return data


def read_text(path: Path, most: int) -> str:
    """Read a UTF-8 file.

    Raises:
        DisaError: as in `read_bytes`, or if the file is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DisaError(f"{path}: it is not UTF-8 text: give another file") from error


def text_lines(text: str) -> list[str]:
    """The lines of a text, which end as lines of files do: with LF, CR LF or CR.

    `str.splitlines` also ends them at characters that JSON and prompts may contain, such as U+2028.
    """
    return io.StringIO(text, newline=None).read().split("\n")


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths are the same existing file, also by other names."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def as_text(name: str) -> str:
    """A file name as text that can be encoded in UTF-8: other bytes become question marks."""
    return name.encode("utf-8", "replace").decode()


def mount_point(path: Path) -> Path:
    """The mount point of the file system that holds `path`, which may not exist yet."""
    place = _existing(path)
    while not place.is_mount() and place != place.parent:
        place = place.parent
    return place


def free_bytes(path: Path) -> int:
    """Free bytes of the file system that holds `path`, which may not exist yet."""
    return shutil.disk_usage(_existing(path)).free


def check_room(path: Path, needed: int) -> None:
    """Check that `needed` bytes can be written at `path`.

    Raises:
        DisaError: the disk does not have so much free space.
    """
    with suppress(OSError):
        free = free_bytes(path)
        if free < needed:
            raise DisaError(no_room(path, needed - free))


def no_room(path: Path, missing: int = 0) -> str:
    """The message for a full disk.

    Args:
        missing: bytes by which the free space is too small; 0 if unknown.
    """
    much = f": {_amount(missing)} more are needed" if missing else ""
    return (
        f"there is no space left for {path} on the disk at {mount_point(path)}{much}; free some, "
        "or choose another folder with -o"
    )


def _existing(path: Path) -> Path:
    place = path.resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _amount(count: float) -> str:
    for unit in ("bytes", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
