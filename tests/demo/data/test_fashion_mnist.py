import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from demo.data import fashion_mnist
from disa.errors import DisaError


def test_images_are_read_and_get_a_border(
    tmp_path: Path, write_split: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28))
    write_split(images, np.array([3, 0, 9, 1, 1]))
    loaded, labels = fashion_mnist.load("train", tmp_path)
    assert loaded.shape == (5, 32, 32)
    np.testing.assert_array_equal(loaded[:, 2:30, 2:30], images)
    assert loaded.sum() == images.sum()
    assert labels.tolist() == [3, 0, 9, 1, 1]


def test_bytes_become_minus_one_to_one() -> None:
    scaled = fashion_mnist.to_model(np.array([0, 255], np.uint8))
    assert scaled.tolist() == [-1, 1]


def test_missing_data_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist.load("train", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"", mtime=0),
        gzip.compress(bytes([0, 0, 8, 3, 0, 0]), mtime=0),
        gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 1]) + bytes(4), mtime=0),
        gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(8), mtime=0),
        gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9]) + bytes(9), mtime=0)[:-9],
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(content)
    with pytest.raises(DisaError, match="fetch it again"):
        fashion_mnist.read_idx(path)


def test_images_and_labels_must_match(
    tmp_path: Path, write_split: Callable[[np.ndarray, np.ndarray], None]
) -> None:
    write_split(np.zeros((2, 28, 28)), np.zeros(3))
    with pytest.raises(DisaError, match="do not match"):
        fashion_mnist.load("train", tmp_path)
