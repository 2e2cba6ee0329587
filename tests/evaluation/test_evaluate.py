"""The same metrics as torch-fidelity computes from the same files."""

from pathlib import Path

import numpy as np
import pytest

from disa.errors import DisaError
from disa.evaluation.evaluate import evaluate
from disa.evaluation.features import ImageFeatures
from disa.evaluation.image_sets import ImageFiles
from disa.evaluation.inception import Inception

from .images import write_images


def test_all_metrics(inception_weights: Path, tmp_path: Path) -> None:
    generated, real = write_images(tmp_path / "a", 10, 0), write_images(tmp_path / "b", 7, 1)
    import torch_fidelity

    expected = torch_fidelity.calculate_metrics(
        input1=str(generated),
        input2=str(real),
        cuda=False,
        isc=True,
        fid=True,
        prc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_weights),
        feature_layer_fid="192",
        feature_layer_prc="192",
        batch_size=8,
        cache=False,
        verbose=False,
        # Without it four processes are forked, from one that has threads.
        save_cpu_ram=True,
    )
    extractor = Inception(inception_weights, features="192")
    found = evaluate(
        ImageFiles(generated), ImageFiles(real), extractor, batch_size=8, precision_recall=True
    )
    assert found["frechet_distance"] == pytest.approx(
        expected["frechet_inception_distance"], rel=1e-5
    )
    for name in ("inception_score_mean", "inception_score_std"):
        assert found[name] == pytest.approx(expected[name], rel=1e-6)
    for name in ("precision", "recall"):
        assert found[name] == expected[name]


class Classifier:
    """Stands in for a network that knows classes: all images are of class 1."""

    name, width = "pixels", 2

    def __call__(self, images: np.ndarray) -> ImageFeatures:
        features = images.reshape(len(images), -1)[:, :2].astype(np.float32)
        return ImageFeatures(features, classes=np.ones(len(images), np.int64))

    def describe(self) -> dict[str, str]:
        return {"features": self.name}


@pytest.mark.parametrize(
    ("conditions", "accuracy"),
    [([1, 0, 1, 1, 0, 1, 1, 1], 6 / 8), (["a boot"] * 8, None), (None, None)],
)
def test_accuracy_is_that_of_classes(
    conditions: list[int | str] | None,
    accuracy: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A classifier cannot compare its classes with prompts."""
    images = ImageFiles(write_images(tmp_path / "a", 8, 0))
    monkeypatch.setattr(ImageFiles, "conditions", conditions)
    found = evaluate(images, images, Classifier(), batch_size=3)
    assert found.get("accuracy") == accuracy


def test_features_that_are_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ImageFiles(write_images(tmp_path / "a", 4, 0))
    whole = Classifier.__call__

    def overflowing(self: Classifier, batch: np.ndarray) -> ImageFeatures:
        seen = whole(self, batch)
        seen.features[-1] = np.inf
        return seen

    monkeypatch.setattr(Classifier, "__call__", overflowing)
    with pytest.raises(DisaError, match="features that are not finite"):
        evaluate(images, images, Classifier())
