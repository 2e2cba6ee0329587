"""One file for each image: names, and what is taken for an image."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.runtime.outputs.formats import folder
from disa.runtime.outputs.formats.folder import FolderFormat, Numbered
from disa.runtime.outputs.formats.format import Unit
from disa.runtime.outputs.image_files import ImageFile, encode_latents
from disa.runtime.outputs.selection import Selection
from disa.runtime.outputs.store import LocalStore

NAMES = {
    0: "000000",
    9_999: "009999",
    10_000: "0001/010000",
    19_999: "0001/019999",
    1_234_567: "0123/1234567",
    100_000_000: "10000/100000000",
}
FORMAT = FolderFormat(Numbered(), "png")
THREE = Selection.of_seed([5, 6, 7], seed=1, first_image=9_999)


def test_names_are_numbers() -> None:
    assert {index: Numbered().name(index) for index in NAMES} == NAMES
    assert {index: Numbered().index(name) for index, name in NAMES.items()} == {i: i for i in NAMES}


@given(st.integers(0, 10**9))
def test_a_name_is_read_as_its_number(index: int) -> None:
    assert Numbered().index(Numbered().name(index)) == index


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("010000", 10_000),  # Version 1 had no sub-folders.
        ("1234567", 1_234_567),
        ("0000010", None),
        ("00010", None),
        ("0000/000010", None),
        ("0001/000010", None),
        ("0002/010000", None),
        ("001/010000", None),
        ("a/000010", None),
        ("grid", None),
    ],
)
def test_other_names(name: str, index: int | None) -> None:
    assert Numbered().index(name) == index


def write_all(place: Path) -> LocalStore:
    store = LocalStore(place)
    files = {offset: ImageFile("png", b"%d" % offset) for offset in range(3)}
    FORMAT.write(store, Unit(0, THREE.rows(0, 3), [0, 1, 2]), files)
    return store


def test_only_missing_images_are_written(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    FORMAT.write(store, Unit(0, THREE.rows(0, 3), [2]), {2: ImageFile("png", b"two")})
    assert list(store.names()) == ["0001/010001.png"]
    assert list(FORMAT.progress(store, THREE).present) == [0, 0, 1]
    with pytest.raises(DisaError, match="lacks image 9999: run again to generate it"):
        list(FORMAT.read(store, THREE))


def test_images_are_read_in_order(tmp_path: Path) -> None:
    store = write_all(tmp_path)
    found = list(FORMAT.read(store, THREE))
    assert [image.row for image in found] == THREE.rows(0, 3)
    assert [image.file for image in found] == [ImageFile("png", b"%d" % i) for i in range(3)]
    assert [image.where for image in found] == [f"{tmp_path}/{NAMES[9_999]}.png"] + [
        f"{tmp_path}/0001/01000{i}.png" for i in range(2)
    ]


def test_other_files_are_nobodys_images(tmp_path: Path) -> None:
    store = write_all(tmp_path)
    others = {"000000.png", "009999.jpg", "9999.png", "0001/010009.png", "notes.png"}
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    assert set(FORMAT.owned(store, THREE)) == set(store.names()) - others
    assert list(FORMAT.progress(store, THREE).present) == [1, 1, 1]


def test_images_of_version_1_are_read_in_one_folder(tmp_path: Path) -> None:
    store = write_all(tmp_path)
    (tmp_path / "0001" / "010000.png").rename(tmp_path / "010000.png")
    assert list(FORMAT.progress(store, THREE).present) == [1, 1, 1]
    assert [image.file.data for image in FORMAT.read(store, THREE)] == [b"0", b"1", b"2"]


class Listed(LocalStore):
    """Remembers the folders that are looked into."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.entered: list[str] = []

    def names(
        self, folder: str = "", within: Callable[[str], bool] = lambda _: True
    ) -> Iterator[str]:
        def noted(name: str) -> bool:
            if found := within(name):
                self.entered.append(name)
            return found

        return super().names(folder, noted)


@pytest.mark.parametrize(
    ("selection", "entered"),
    [
        (THREE, ["0001"]),
        (Selection.of_seed([0] * 5, 0), []),
        (Selection([30_000, 5, 10_001], [0] * 3, 0), ["0001", "0003"]),
    ],
)
def test_only_the_folders_of_the_run_are_looked_into(
    selection: Selection, entered: list[str], tmp_path: Path
) -> None:
    """A run in a home folder would list the whole disk."""
    for name in ("0001", "0002", "0003", "2024", "photos/0001", "0001/0001", "notes.png"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    store = Listed(tmp_path)
    assert not any(FORMAT.progress(store, selection).present)
    assert list(FORMAT.owned(store, selection)) == []
    assert sorted(store.entered) == sorted(entered * 2)


class Conditions(list[int]):
    """Remembers how many are used."""

    used = 0

    def __getitem__(self, place: Any) -> Any:
        self.used += 1
        return super().__getitem__(place)


def test_images_are_read_without_a_list_of_all(tmp_path: Path) -> None:
    """The grid needs 400 of a million images."""
    store, conditions = write_all(tmp_path), Conditions([0] * 5000)
    images = FORMAT.read(store, Selection.of_seed(conditions, 0, 9_999))
    assert [next(images).file.data for _ in range(3)] == [b"0", b"1", b"2"]
    assert conditions.used <= 1000
    with pytest.raises(DisaError, match="lacks image 10002: run again"):
        next(images)


def test_a_file_that_is_too_large_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write_all(tmp_path)
    (tmp_path / "009999.png").write_bytes(b"12345")
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 5)
    assert next(FORMAT.read(store, THREE)).file.data == b"12345"
    monkeypatch.setattr(folder, "MAX_FILE_BYTES", 4)
    with pytest.raises(DisaError, match=r"009999\.png is damaged: delete it and run again"):
        next(FORMAT.read(store, THREE))


def test_latents_are_images_of_any_run(tmp_path: Path) -> None:
    file = encode_latents(np.zeros((1, 2, 2), np.float32))
    store = LocalStore(tmp_path)
    FORMAT.write(store, Unit(0, THREE.rows(0, 1), [0]), {0: file})
    assert list(FORMAT.owned(store, THREE)) == ["009999.npy"]
