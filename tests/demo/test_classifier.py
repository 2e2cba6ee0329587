from pathlib import Path

import numpy as np
import pytest
import torch

from demo import classifier
from demo.classifier import FEATURES, Classifier, classify
from demo.data import fashion_mnist
from disa.errors import DisaError


def test_batches_give_the_features_and_classes_of_all_images() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32)).astype(np.uint8)
    features, classes = classify(model, images, batch_size=3)
    assert features.shape == (7, FEATURES)
    pixels = torch.from_numpy(fashion_mnist.to_model(images)).unsqueeze(1)
    np.testing.assert_array_equal(classes, model(pixels).argmax(1).numpy())


def test_training_learns_to_tell_bright_from_dark() -> None:
    torch.manual_seed(0)
    labels = np.arange(64) % 2
    noise = np.random.default_rng(0).integers(0, 60, (64, 32, 32))
    images = (noise + 190 * labels[:, None, None]).astype(np.uint8)
    model = Classifier()
    losses = list(classifier.train(model, images, labels, epochs=3, batch_size=16))
    assert losses[-1] < losses[0]
    assert not model.training
    assert (classify(model, images)[1] == labels).mean() > 0.9


def test_a_classifier_that_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match=r"none.pt does not exist: run `python -m demo.classifier`"):
        classifier.load(tmp_path / "none.pt")
