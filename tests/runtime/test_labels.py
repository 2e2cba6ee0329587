from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.runtime.labels import find_class, read_labels

NAMES = ["goldfish, Carassius auratus", "sports car, sport car", "Sneaker", "crane", "crane"]


def test_numbers_and_names() -> None:
    assert find_class(3, 1000, None) == 3
    assert find_class("3", 1000, NAMES) == 3
    assert find_class("sneaker", 5, NAMES) == 2
    assert find_class("Sport Car", 5, NAMES) == 1
    assert find_class("goldfish, carassius auratus", 5, NAMES) == 0
    assert find_class("crane", 5, NAMES) == 3


@pytest.mark.parametrize(
    ("wanted", "names", "told"),
    [
        ("5", NAMES, "0 to 4"),
        (-1, NAMES, "0 to 4"),
        ("sneeker", NAMES, "did you mean 'Sneaker'"),
        ("", NAMES, "no class"),
        ("dog", None, "no class names"),
        ("9" * 5000, NAMES, "no class"),
        ("zebra", [*NAMES, "zebra"], "no class 'zebra'"),
    ],
)
def test_what_does_not_exist(wanted: int | str, names: list[str] | None, told: str) -> None:
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
    path.write_bytes(b"\xef\xbb\xbfcat\n")
    assert read_labels(path, 1) == ["cat"]
    with pytest.raises(DisaError, match="1 class names, and the model has 10 classes"):
        read_labels(path, 10)
    with pytest.raises(DisaError, match="cannot be read"):
        read_labels(tmp_path)
