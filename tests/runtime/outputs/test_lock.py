"""One run at a time in a folder, and what the second one is told."""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.runtime.outputs.lock import LOCK, FolderLock, describe_holder, holder, lock_store
from disa.runtime.outputs.store import LocalStore


def test_the_holder_is_described_in_the_file(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("x" * 5000)  # A killed run has left it.
    lock = FolderLock(tmp_path)
    found = json.loads((tmp_path / LOCK).read_bytes())
    assert (found["host"], found["process"]) == (socket.gethostname(), os.getpid())
    assert found == holder() | {"started": found["started"]}
    told = f"process {os.getpid()} on '{socket.gethostname()}' since '{found['started']}'"
    with pytest.raises(DisaError) as caught:
        FolderLock(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is being written by {told}: wait for it, or choose another folder with -o"
    )
    lock.release()
    assert list(tmp_path.iterdir()) == []
    lock.release()


def test_a_lock_is_released_once(tmp_path: Path) -> None:
    """A second release leaves alone the lock that another run has by then."""
    first = FolderLock(tmp_path)
    first.release()
    second = FolderLock(tmp_path)
    first.release()
    assert (tmp_path / LOCK).exists()
    with pytest.raises(DisaError, match="is being written"):
        FolderLock(tmp_path)
    second.release()


def test_a_file_that_is_removed_while_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was locked after its holder had removed it, so it locks nothing."""
    open_file, opened = os.open, []

    def removing(path: Path, *rest: int) -> int:
        opened.append(open_file(path, *rest))
        if len(opened) == 1:
            path.unlink()
        if len(opened) == 2:
            path.rename(tmp_path / "other")
            path.write_bytes(b"")
        return opened[-1]

    monkeypatch.setattr(os, "open", removing)
    lock = FolderLock(tmp_path)
    monkeypatch.undo()
    assert len(opened) == 3
    assert json.loads((tmp_path / LOCK).read_bytes())["process"] == os.getpid()
    lock.release()


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was said that the folder cannot be written."""

    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(DisaError, match=f"^{tmp_path} is on a file system without locks, which"):
        FolderLock(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"x", b"[]", b"{}", b'{"host": "a", "process": "b"}', b"\xff"),
        b'{"host": "a", "process": 1e999, "started": ""}',
    ],
)
def test_a_holder_that_says_nothing(data: bytes) -> None:
    assert describe_holder(data) == "another run"


def test_what_a_holder_says_is_cut() -> None:
    data = json.dumps({"host": "a\x1b", "process": 7, "started": "2024-01-31 10:20:30 and more"})
    assert describe_holder(data.encode()) == r"process 7 on 'a\x1b' since '2024-01-31 10:20:30'"


def test_the_folder_is_made(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    for _ in range(2):
        lock_store(LocalStore(place)).release()
    assert place.is_dir()
