"""Files that are written whole or not at all, and read only as far as is sensible."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import DisaError

MIB = 1 << 20


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is at `path` once it is complete; nothing is left of a failure."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file; DisaError if it cannot be read or has more than `most` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise DisaError(f"{path}: it cannot be read: {error.strerror or error}") from error
    if len(data) > most:
        raise DisaError(f"{path}: it is larger than {most // MIB} MiB: give another file")
    return data


def read_text(path: Path, most: int) -> str:
    """The text of such a file; DisaError if it is not UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DisaError(f"{path}: it is not UTF-8 text: give another file") from error
