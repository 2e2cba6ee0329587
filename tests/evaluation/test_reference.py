"""Statistics and images as references."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disa.errors import DisaError
from disa.evaluation.evaluate import evaluate
from disa.evaluation.frechet import Moments
from disa.evaluation.image_sets import ImageFiles
from disa.evaluation.inception import Inception
from disa.evaluation.reference import open_reference

from .images import write_images


def test_statistics_give_what_their_images_give(inception_weights: Path, tmp_path: Path) -> None:
    generated, real = write_images(tmp_path / "a", 4, 0), write_images(tmp_path / "b", 3, 1)
    extractor = Inception(inception_weights, features="64")
    stack = np.stack([np.asarray(Image.open(path)) for path in sorted(real.iterdir())])
    moments = Moments.of(extractor(stack).features)
    np.savez(tmp_path / "stats.npz", mu=moments.mean, sigma=moments.covariance)
    np.savez(tmp_path / "images.npz", arr_0=stack, arr_1=np.arange(3))
    found = [
        evaluate(ImageFiles(generated), open_reference(place, 64), extractor)["frechet_distance"]
        for place in (real, tmp_path / "stats.npz", tmp_path / "images.npz")
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)
    with pytest.raises(DisaError, match="another network or layer"):
        open_reference(tmp_path / "stats.npz", 2048)
    with pytest.raises(DisaError, match="not its statistics"):
        evaluate(
            ImageFiles(generated),
            open_reference(tmp_path / "stats.npz", 64),
            extractor,
            precision_recall=True,
        )


def test_a_file_may_have_statistics_and_images(inception_weights: Path, tmp_path: Path) -> None:
    """As ADM's reference batches: statistics of all images, and some images for the recall."""
    generated, real = write_images(tmp_path / "a", 6, 0), write_images(tmp_path / "b", 5, 1)
    extractor = Inception(inception_weights, features="64")
    stack = np.stack([np.asarray(Image.open(path)) for path in sorted(real.iterdir())])
    statistics = {"mu": np.zeros(64), "sigma": np.eye(64)}
    np.savez(tmp_path / "statistics.npz", **statistics)
    np.savez(tmp_path / "both.npz", arr_0=stack, **statistics)
    np.savez(tmp_path / "images.npz", arr_0=stack)
    found = {
        (name, both): evaluate(
            ImageFiles(generated),
            open_reference(tmp_path / f"{name}.npz", 64, both),
            extractor,
            precision_recall=both,
        )
        for name, both in (("statistics", False), ("both", False), ("both", True), ("images", True))
    }
    distances = {key: each["frechet_distance"] for key, each in found.items()}
    assert distances["both", True] == distances["both", False] == distances["statistics", False]
    assert distances["both", True] != distances["images", True]
    for metric in ("precision", "recall"):
        assert found["both", True][metric] == found["images", True][metric]
        assert metric not in found["both", False]
