"""A temporary folder for the files of a plan before the plan is written."""

import errno
import fcntl
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from .errors import DisaError
from .files import check_room, free_bytes, no_room

_FULL = 1 << 20
"""Free bytes below which a library's failed write is explained by a full disk."""
PREFIX = ".disa-"
LOCK = "lock"
_NAME = re.compile(re.escape(PREFIX) + r"[a-z0-9_]{8}")
_ATTEMPTS = 10
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems without locks, such as Lustre without the option flock."""


@contextmanager
def scratch_folder(plan: Path, needed: int = 0) -> Iterator[Path]:
    """A temporary folder beside the plan, where free space is needed anyway.

    The folder is deleted with its content at the end, also if the process receives SIGTERM, which
    raises KeyboardInterrupt inside the block. Folders that killed processes left beside the plan
    are deleted first; they are recognised by their locks, which end with their process.

    Args:
        needed: bytes that will be written there and into the plan, as far as known.

    Raises:
        DisaError: the plan's folder cannot be written, or its disk is full, now or later.
    """
    parent = plan.resolve().parent
    check_room(plan, needed)
    with terminated_like_interrupted():
        try:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(parent)
            folder, lock = _locked_folder(parent)
        except OSError as error:
            reason = error.strerror or error
            raise DisaError(f"{plan} cannot be written: {reason} ({parent})") from error
        try:
            yield folder
        except Exception as error:
            if _disk_is_full(parent, error):
                raise DisaError(no_room(plan, _missing(parent, folder, needed))) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt inside the block, so that unfinished files are removed.

    Signals belong to the main thread; in another thread, or if the program has its own handler,
    nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """Create a folder; returns it and the file descriptor that holds its lock."""
    for _ in range(_ATTEMPTS):
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        # Another process may have deleted the folder as abandoned before it was locked.
        # Without locks on the file system, no process takes it for abandoned either.
        if _try_lock(lock, folder / LOCK, without=True):
            return folder, lock
        os.close(lock)
    raise OSError("temporary folders are deleted as soon as they are created")


def _remove_abandoned(parent: Path) -> None:
    """Delete the temporary folders of processes that have ended."""
    for folder in parent.iterdir():
        if not _NAME.fullmatch(folder.name) or folder.is_symlink():
            continue
        with suppress(OSError):
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _try_lock(lock, folder / LOCK):
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _try_lock(lock: int, path: Path, without: bool = False) -> bool:
    """Try to lock; returns whether this process holds the lock and the file is still at `path`.

    Args:
        without: the result if the file system has no locks.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(path))
    except OSError as error:
        return without and error.errno in NO_LOCKS


def _disk_is_full(folder: Path, error: BaseException) -> bool:
    """Whether an error is caused by a full disk, even if a library does not say so."""
    if isinstance(error, DisaError):
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    try:
        return free_bytes(folder) < _FULL
    except OSError:
        return False


def _missing(parent: Path, scratch: Path, needed: int) -> int:
    """Bytes by which the disk is too small without the temporary folder; 0 if unknown."""
    try:
        used = sum(entry.stat().st_size for entry in os.scandir(scratch))
        return max(0, needed - used - free_bytes(parent))
    except OSError:
        return 0
