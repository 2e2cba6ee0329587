import numpy as np
import pytest

from demo.classifier import classify, load
from disa.errors import DisaError
from disa.evaluation.demo import DemoFeatures


def test_the_demos_classifier() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    features, classes = classify(load(), images[..., 0])
    seen = DemoFeatures()(images)
    np.testing.assert_array_equal(seen.features, features)
    assert seen.classes is not None
    np.testing.assert_array_equal(seen.classes, classes)
    assert seen.logits is None
    with pytest.raises(DisaError, match="32x32"):
        DemoFeatures()(images[:, :16])


def test_images_of_an_autoencoder_have_three_channels_of_grey() -> None:
    """Those of the demo's own models, which this has to take."""
    grey = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    seen = DemoFeatures()(np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(seen.features, DemoFeatures()(grey).features)
    with pytest.raises(DisaError, match="grey images"):
        DemoFeatures()(np.concatenate([grey, grey, 255 - grey], axis=-1))
