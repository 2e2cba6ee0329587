"""Files that are written whole or not at all."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from disa import files
from disa.bench.report import check_writable
from disa.errors import DisaError
from disa.files import as_text, check_room, read_text, text_lines, written_whole


def test_a_file_is_there_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with written_whole(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [OSError, KeyboardInterrupt, ValueError])
def test_nothing_is_left_of_a_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with written_whole(path) as file:
            file.write(b"half of the new")
            raise failure

    with pytest.raises(failure):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_processes_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    code = (
        "import sys; from pathlib import Path; from disa.files import written_whole\n"
        "with written_whole(Path(sys.argv[1]), shared=True) as file:\n"
        "    file.write(b'theirs'); file.flush(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with written_whole(path, shared=True) as file:
            file.write(b"ours")
        assert path.read_bytes() == b"ours"
        other.communicate()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), written_whole(tmp_path / "file" / "a.txt"):
        pass


def test_devices_and_pipes_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root replaced /dev/null by a file, for all processes of the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="not a regular file"), written_whole(tmp_path / name):
            pass
        with pytest.raises(DisaError, match=f"{name} cannot be written: it is not a regular"):
            check_writable(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    # /dev/stdout may refer to a file.
    monkeypatch.setattr(files, "DEVICES", tmp_path.resolve())
    with pytest.raises(OSError, match="not a regular file"), written_whole(tmp_path / "stdout"):
        pass


def test_text_is_read_as_far_as_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfcat" + b" " * (1 << 20))
    assert read_text(path, 2 << 20).strip() == "cat"
    with pytest.raises(DisaError, match=r"a\.txt: it is larger than 1 MiB"):
        read_text(path, 1 << 20)
    path.write_bytes(b"\xff")
    with pytest.raises(DisaError, match="not UTF-8"):
        read_text(path, 10)
    with pytest.raises(DisaError, match="cannot be read: Is a directory"):
        read_text(tmp_path, 10)


@pytest.mark.parametrize("kind", ["fifo", "device", "socket"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path) -> None:
    """A pipe would wait for ever, a device may never end."""
    path = tmp_path / kind
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        socket.socket(socket.AF_UNIX).bind(str(path))
    with pytest.raises(DisaError, match="cannot be read"):
        read_text(path, 10)


def test_a_name_that_no_file_can_have() -> None:
    with pytest.raises(DisaError, match="cannot be read: its name is not usable"):
        read_text(Path("a\0b"), 10)


def test_the_room_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(tmp_path / "none" / "a.plan", 1)
    monkeypatch.setattr(files, "free_bytes", lambda _path: 10**9)
    with pytest.raises(DisaError, match=r"a\.plan on the disk at /.*: 1.5 GB more are needed"):
        check_room(tmp_path / "a.plan", 2_500_000_000)


def test_names_as_text() -> None:
    assert as_text("mar_é\udcff") == "mar_é?"


def test_lines_end_where_those_of_files_do() -> None:
    """JSON may contain the other separators of Unicode within a text."""
    assert text_lines("a\nb\r\nc\rd") == ["a", "b", "c", "d"]
    for separator in "\v\f\x1c\x85\u2028\u2029":
        assert text_lines(f"a{separator}b\n") == [f"a{separator}b", ""]
