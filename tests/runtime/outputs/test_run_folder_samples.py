"""samples.npz beside the images of a folder."""

from pathlib import Path

import numpy as np
import pytest

from .run_folders import run


def samples_in(place: Path) -> int | None:
    path = place / "samples.npz"
    return len(np.load(path)["arr_0"]) if path.exists() else None


def test_samples_are_made_when_they_are_wanted(tmp_path: Path) -> None:
    run(tmp_path, 3)
    assert not (tmp_path / "samples.npz").exists()
    run(tmp_path, 3, npz=True)
    samples = np.load(tmp_path / "samples.npz")
    assert samples["arr_0"][:, 0, 0, 0].tolist() == [0, 1, 2]
    run(tmp_path, 3, overwrite=True)
    assert not (tmp_path / "samples.npz").exists()


def test_samples_of_fewer_images_are_removed(tmp_path: Path) -> None:
    run(tmp_path, 3)
    run(tmp_path, 3, npz=True)
    run(tmp_path, 2)
    assert (tmp_path / "samples.npz").exists()
    run(tmp_path, 5)
    assert not (tmp_path / "samples.npz").exists()


@pytest.mark.parametrize(
    ("requested", "left"),
    [
        (2, 2),  # All that are requested,
        (3, None),  # and some of them only.
        (1, None),
    ],
)
def test_samples_of_a_part_do_not_stay_with_a_whole_run(
    requested: int, left: int | None, tmp_path: Path
) -> None:
    run(tmp_path, 3)
    run(tmp_path, 2, npz=True)
    run(tmp_path, requested)
    assert samples_in(tmp_path) == left


def test_samples_of_a_whole_run_stay(tmp_path: Path) -> None:
    run(tmp_path, 3)
    run(tmp_path, 3, npz=True)
    for count in (3, 2, 3):
        run(tmp_path, count)
        assert samples_in(tmp_path) == 3
    (tmp_path / "samples.npz").write_bytes(b"damaged")
    run(tmp_path, 3)
    assert samples_in(tmp_path) is None
