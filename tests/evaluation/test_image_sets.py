"""Folders and .npz files as sets of images."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from disa.errors import DisaError
from disa.evaluation.image_sets import ImageFiles, NpzImages, Runs

from .images import write_images


def test_a_folder_is_read_with_its_sub_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "b", 2, 0)
    write_images(tmp_path / "b" / "a", 1, 1)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    images = ImageFiles(tmp_path / "b")
    assert images.count == 3
    assert [image.shape for image in images] == [(32, 40, 3)] * 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(DisaError, match="has no images"):
        ImageFiles(tmp_path / "empty")


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write_images(tmp_path / "b", 2, 0)
    (tmp_path / "b" / "001.png").write_bytes(b"no png")
    with pytest.raises(DisaError, match=r"001\.png"):
        list(ImageFiles(tmp_path / "b"))


def test_images_of_an_npz_are_read_one_by_one(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    np.savez(tmp_path / "a.npz", arr_0=stack)
    images = NpzImages(tmp_path / "a.npz")
    assert images.count == 3
    np.testing.assert_array_equal(np.stack(list(images)), stack)
    assert images.describe() == {"file": str(tmp_path / "a.npz"), "images": 3}


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4, 4, 3)),
        np.zeros((4, 4, 3), np.uint8),
        np.asfortranarray(np.zeros((2, 4, 4, 3), np.uint8)),
    ],
)
def test_arrays_that_are_not_images(array: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=array)
    with pytest.raises(DisaError, match="no arr_0 with uint8 images"):
        NpzImages(tmp_path / "a.npz")


def test_an_npz_that_ends_too_early(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz") as file:
        member = file.read("arr_0.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as file:
        file.writestr("arr_0.npy", member[:-100])
    with pytest.raises(DisaError, match="ends too early"):
        list(NpzImages(tmp_path / "b.npz"))


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="it is not a run of disa"):
        Runs([str(tmp_path)])
