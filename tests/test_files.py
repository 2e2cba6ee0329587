"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.files import read_text, written_whole


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


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError), written_whole(tmp_path / "file" / "a.txt"):
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
