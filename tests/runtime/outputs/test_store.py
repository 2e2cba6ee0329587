"""Files by name, in a folder and elsewhere."""

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.runtime.outputs.remote import RemoteStore, modified
from disa.runtime.outputs.store import PARTIAL, LocalStore, Store, open_store, storing

KINDS = ("folder", "memory", "remote")
"""A folder, an object store, and a remote folder in which an upload is visible early."""


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    urls = {
        "folder": f"{tmp_path}/run",
        "memory": "memory://s/run/",
        "remote": f"local://{tmp_path}/run",
    }
    found = open_store(urls[request.param])
    assert isinstance(found, LocalStore if request.param == "folder" else RemoteStore)
    yield found
    if request.param == "memory":
        assert isinstance(found, RemoteStore)
        found.fs.store.clear()


def put(store: Store, name: str, data: bytes = b"x") -> None:
    with store.write(name) as file:
        file.write(data)


def content(store: Store, name: str) -> bytes:
    with store.read(name) as file:
        return file.read()


def test_files_are_written_and_read(store: Store) -> None:
    assert (list(store.names()), list(store.top_names())) == ([], [])
    assert not store.exists("a.txt")
    for name in ("a.txt", "b/c.txt", "b/d/e.txt"):
        put(store, name, name.encode())
        assert content(store, name) == name.encode()
        assert store.exists(name)
    put(store, "a.txt", b"again")
    assert content(store, "a.txt") == b"again"
    assert sorted(store.names()) == ["a.txt", "b/c.txt", "b/d/e.txt"]
    assert sorted(store.names("b")) == ["b/c.txt", "b/d/e.txt"]
    assert list(store.names("none")) == []
    assert list(store.top_names()) == ["a.txt"]
    assert list(store.top_names("b")) == ["b/c.txt"]
    assert list(store.top_names("none")) == []
    with pytest.raises(FileNotFoundError):
        content(store, "b/none.txt")


def test_a_removed_file_takes_its_empty_folder(store: Store) -> None:
    for name in ("a.txt", "b/c.txt", "b/d.txt"):
        put(store, name)
    for name, left in (("b/c.txt", ["a.txt", "b/d.txt"]), ("b/d.txt", ["a.txt"]), ("a.txt", [])):
        store.remove(name)
        store.remove(name)
        assert sorted(store.names()) == left
    if isinstance(store, LocalStore):
        assert not (store.folder / "b").exists()
        assert store.folder.exists()


def test_a_failure_leaves_nothing(store: Store) -> None:
    put(store, "a.txt", b"before")

    def fail(name: str) -> None:
        with store.write(name) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    for name in ("a.txt", "b.txt"):
        with pytest.raises(KeyboardInterrupt):
            fail(name)
    assert list(store.names()) == ["a.txt"]
    assert content(store, "a.txt") == b"before"
    if isinstance(store, LocalStore):
        assert list((store.folder / PARTIAL).iterdir()) == []


def test_what_is_incomplete_has_no_name_and_is_cleaned(store: Store, tmp_path: Path) -> None:
    put(store, "a.txt")
    put(store, f"{PARTIAL}/half")
    assert list(store.names()) == ["a.txt"]
    assert store.exists(f"{PARTIAL}/half")
    for _ in range(2):
        store.clean()
        assert not store.exists(f"{PARTIAL}/half")
    assert list(store.names()) == ["a.txt"]


def test_appending(store: Store) -> None:
    put(store, "a.txt", b"one")
    if store.appends:
        store.append("a.txt", b", two")
        assert content(store, "a.txt") == b"one, two"
        return
    with pytest.raises(OSError, match="files cannot grow there") as caught:
        store.append("a.txt", b"")
    assert caught.value.errno == errno.ENOTSUP


def test_how_a_place_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("some/run")
    assert (str(store), store.absolute()) == ("some/run", f"{tmp_path}/some/run")
    store = open_store(f"file://{tmp_path}/run")
    assert isinstance(store, LocalStore)
    assert store.folder == tmp_path / "run"
    store = open_store("memory://a/b//")
    assert (str(store), store.absolute()) == ("memory://a/b", "memory://a/b")
    assert isinstance(store, RemoteStore)
    assert (store.path("c"), store.path("")) == ("/a/b/c", "/a/b")


def test_uploads_that_become_visible_early_are_renamed(tmp_path: Path) -> None:
    seen = []
    for url in (f"local://{tmp_path}", "memory://whole"):
        store = RemoteStore(url)
        upload = store.fs.put_file

        def watched(source: str, target: str, upload: object = upload) -> None:
            seen.append(target)
            upload(source, target)  # type: ignore[operator]

        store.fs.put_file = watched
        put(store, "b/a.txt")
        del store.fs.put_file
        store.fs.rm(store.path("b"), recursive=True)
    assert seen[0].startswith(f"{tmp_path}/{PARTIAL}/")
    assert seen[1:] == ["/whole/b/a.txt"]


def test_errors_of_a_library_are_errors_of_the_system() -> None:
    store = RemoteStore("memory://errors")

    class Odd(Exception):
        pass

    def fail(*_: object) -> None:
        raise Odd("no such luck")

    store.fs.modified = fail
    with pytest.raises(OSError, match="Odd: no such luck") as caught:
        modified(store, "a.txt")
    del store.fs.modified
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, "memory://errors/a.txt")
    told = r"memory://errors/a\.txt cannot be written: Odd: no such luck: choose another folder"
    with pytest.raises(DisaError, match=told), storing(store):
        raise caught.value
    told = "^memory://errors cannot be written: no room: choose"
    with pytest.raises(DisaError, match=told), storing(store):
        raise OSError("no room")


def test_only_files_are_read(tmp_path: Path) -> None:
    """Opening a FIFO would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    store = LocalStore(tmp_path)
    with pytest.raises(OSError, match="it is not a regular file") as caught:
        store.read("pipe")
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(tmp_path / "pipe"))
    with pytest.raises(IsADirectoryError):
        store.read("folder")
    assert list(store.top_names()) == ["pipe"]


def test_folders_elsewhere_are_not_entered(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "a.txt").touch()
    (run / "link").symlink_to(tmp_path)
    assert list(LocalStore(run).names()) == ["link"]


def test_folders_that_may_not_be_read_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as lost+found, if a whole disk is for images."""
    store = LocalStore(tmp_path)
    for name in ("0001/a.txt", "lost+found/b.txt", "z/c.txt"):
        put(store, name)
    scandir = os.scandir

    def guarded(folder: Path) -> object:
        if Path(folder).name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert sorted(store.names()) == ["0001/a.txt", "z/c.txt"]
    with pytest.raises(PermissionError):
        list(store.names("lost+found"))


def test_only_the_wanted_folders_are_entered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.txt", "b/c.txt", "b/d/e.txt", "b/x/e.txt", "x/b/d/f.txt"):
        put(store, name)
    entered = []
    scandir = os.scandir

    def noted(folder: Path) -> object:
        entered.append(Path(folder).name)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", noted)
    assert sorted(store.names(within={"b", "b/d"}.__contains__)) == [
        "a.txt",
        "b/c.txt",
        "b/d/e.txt",
    ]
    if isinstance(store, LocalStore):
        assert entered == ["run", "b", "d"]


def test_folders_of_other_disks(tmp_path: Path) -> None:
    """A folder that cannot be removed is left: its file is removed all the same."""
    store = LocalStore(tmp_path)
    put(store, "b/a.txt")
    put(store, "b/mine.txt")
    store.remove("b/a.txt")
    assert list(store.names()) == ["b/mine.txt"]


def test_a_file_is_replaced_where_renaming_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's webhdfs ignores that HDFS renames nothing if the new name exists."""
    store = RemoteStore(f"local://{tmp_path}/run")

    def rename(old: str, new: str) -> None:
        if not os.path.exists(new):
            os.rename(old, new)

    monkeypatch.setattr(store.fs, "mv", rename)
    for data in (b"begun", b"complete"):
        put(store, "run.json", data)
        assert content(store, "run.json") == data


def test_a_full_temporary_folder_is_not_taken_for_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> object:
        return open("/dev/full", "wb")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = open_store("memory://full/run")
    told = rf"^{tmp_path} cannot be written: No space left on device \(files are prepared there; "
    with pytest.raises(DisaError, match=told), storing(store):
        put(store, "a.txt", b"x" * 100_000)
    assert list(store.names()) == []
