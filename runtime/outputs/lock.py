"""Prevents two runs in one folder."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import BinaryIO, Protocol

from ...errors import DisaError
from ...scratch import NO_LOCKS
from .store import LocalStore, Store

LOCK = "run.lock"
MAX_HOLDER_BYTES = 4096


class Lock(Protocol):
    """The exclusive right to write a run."""

    def check(self) -> None:
        """Check that the lock was not lost.

        Raises:
            DisaError: another process has it.
        """
        ...

    def release(self) -> None:
        """End the lock."""
        ...


def lock_store(store: Store) -> Lock:
    """Lock a place, which is created if it does not exist.

    Raises:
        DisaError: another process has the lock; the message names the process.
        OSError: the place cannot be written.
    """
    if isinstance(store, LocalStore):
        store.folder.mkdir(parents=True, exist_ok=True)
        return FolderLock(store.folder)
    from .lease import Lease
    from .remote import RemoteStore

    assert isinstance(store, RemoteStore)
    return Lease(store)


class FolderLock:
    """The exclusive right to write a run's folder, until `release`.

    The operating system releases it when the process ends in any way.

    Raises:
        DisaError: another process has the lock; the message names the process.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file = self._acquired()
        self._file.truncate(0)
        self._file.write(json.dumps(holder()).encode())
        self._file.flush()

    def check(self) -> None:
        """The operating system keeps the lock while this process lives."""

    def release(self) -> None:
        """End the lock."""
        if not self._file.closed:
            # Removed while it is still locked: a process that opened it before sees the removal.
            with contextlib.suppress(OSError):
                self._path.unlink()
            self._file.close()

    def _acquired(self) -> BinaryIO:
        while True:
            file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                told = describe_holder(file.read(MAX_HOLDER_BYTES))
                file.close()
                raise DisaError(
                    f"{self._path.parent} is being written by {told}: wait for it, or choose "
                    "another folder with -o"
                ) from error
            except OSError as error:
                file.close()
                if error.errno not in NO_LOCKS:
                    raise
                raise DisaError(
                    f"{self._path.parent} is on a file system without locks, which keep two runs "
                    "apart: mount it with locks (Lustre: flock), or choose another folder with -o"
                ) from error
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                    return file
            file.close()


def holder() -> dict[str, str | int]:
    """A description of this process, for other processes."""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "process": os.getpid(), "started": started}


def describe_holder(data: bytes) -> str:
    """The text for the result of `holder`; other processes may have written anything."""
    try:
        item = json.loads(data)
        host, process = str(item["host"]), int(item["process"])
        return f"process {process} on {host!r} since {str(item['started'])[:19]!r}"
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return "another run"
