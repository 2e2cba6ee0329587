from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.errors import DisaError, InvalidRequest
from disa.runtime.families.conditions import labels
from disa.runtime.families.conditions.labels import find_class, read_labels

NAMES = ["goldfish, Carassius auratus", "sports car, sport car", "Sneaker", "crane", "crane"]


def test_numbers_and_names() -> None:
    assert find_class(3, 1000, None) == 3
    assert find_class("3", 1000, NAMES) == 3
    assert [find_class(number, 5, NAMES) for number in (0, "4", " 1 ")] == [0, 4, 1]
    assert find_class("sneaker", 5, NAMES) == 2
    assert find_class("Sport Car", 5, NAMES) == 1
    assert find_class("goldfish, carassius auratus", 5, NAMES) == 0


@pytest.mark.parametrize("number", [np.int64(3), np.uint8(3), np.array(3), True + 2])
def test_numbers_of_any_library(number: Any) -> None:
    assert find_class(number, 5, NAMES) == 3


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["Crane", "x", "crane"], "crane"),
        (["maillot", "x", "maillot, tank suit"], "Maillot"),
        (["a, b", "x", "c, b"], "b"),
    ],
)
def test_a_name_that_two_classes_share(names: list[str], wanted: str) -> None:
    with pytest.raises(InvalidRequest, match="belongs to the classes 0 and 2: use the number"):
        find_class(wanted, 3, names)
    assert find_class("x", 3, names) == 1


def test_a_name_twice_in_one_class() -> None:
    assert find_class("boa", 1, ["boa, Boa, snake"]) == 0


@pytest.mark.parametrize(
    ("wanted", "names", "told"),
    [
        ("5", NAMES, "0 to 4"),
        (-1, NAMES, "0 to 4"),
        (5, NAMES, "class 5 does not exist: the model has classes 0 to 4"),
        ("sneeker", NAMES, "no class 'sneeker': did you mean 'Sneaker'"),
        ("sports cat", NAMES, r"did you mean 'sports car, sport car'\?"),
        (
            "qqq",
            NAMES,
            "give a number from 0 to 4, or a name such as 'goldfish, Carassius auratus'",
        ),
        ("", NAMES, "no class"),
        ("dog", None, "no class names"),
        ("9" * 5000, NAMES, "no class"),
        (1.5, NAMES, "whole number or a name, not 1.5"),
        (np.array([1, 2]), NAMES, "whole number or a name"),
        (b"crane", NAMES, "no class"),
        ("\u0663", NAMES, "no class"),
        ("zebra", [*NAMES, "zebra"], "no class 'zebra'"),
    ],
)
def test_what_does_not_exist(wanted: Any, names: list[str] | None, told: str) -> None:
    with pytest.raises(DisaError, match=told):
        find_class(wanted, 5, names)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\n dog \n\nbird\n\n")
    assert read_labels(path) == ["cat", "dog", "", "bird"]
    for data, told in ((b"", "one class name"), (b"\n\n", "a line"), (b"\xff\xfe\x00", "UTF-8")):
        path.write_bytes(data)
        with pytest.raises(DisaError, match=told):
            read_labels(path)
    for data in (
        b"cat\n\x1b[31mdog\n",
        b"cat\n" + b"a" * 1001,
        "cat\n\u202eb".encode(),
        "cat\nd\u2028og".encode(),
    ):
        path.write_bytes(data)
        with pytest.raises(DisaError, match="name of class 1 must be at most 1000 printable"):
            read_labels(path)
    path.write_text("a" * 1000)
    assert read_labels(path) == ["a" * 1000]
    path.write_bytes(b"\xef\xbb\xbfcat\n")
    assert read_labels(path, 1) == ["cat"]
    with pytest.raises(DisaError, match="1 class names, but the model has 10 classes"):
        read_labels(path, 10)
    with pytest.raises(DisaError, match="cannot be read"):
        read_labels(tmp_path)


def test_files_of_any_length_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "labels.txt").write_text("cat\n")
    monkeypatch.setattr(labels, "MAX_BYTES", 4)
    assert read_labels(tmp_path / "labels.txt") == ["cat"]
    monkeypatch.setattr(labels, "MAX_BYTES", 3)
    with pytest.raises(DisaError):
        read_labels(tmp_path / "labels.txt")


def test_a_similar_name_is_found_in_little_time() -> None:
    """A server looks for it on its event loop: comparing a text with all names took 0.3 s."""
    names = [f"great white terrier {n}, golden retriever {n}, sports car {n}" for n in range(2000)]
    compared: list[str] = []

    class Counted(SequenceMatcher):  # type: ignore[type-arg]
        def set_seq1(self, a: Any) -> None:
            compared.append(a)
            super().set_seq1(a)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("difflib.SequenceMatcher", Counted)
        with pytest.raises(InvalidRequest, match="did you mean 'great white terrier 77, golden"):
            find_class("goldn retrievr 77", len(names), names)
    # The matcher sets an empty text when it is made.
    assert 1 < len(compared) <= 1 + labels.LIKELY_NAMES
    with pytest.raises(InvalidRequest, match="no class"):
        find_class("golden retriever " * 50, len(names), names)
