from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from demo.classifier import Classifier, classify
from demo.quality import quality, real_quality, spread_classes
from disa.evaluation.frechet import Moments

Write = Callable[..., None]


def test_classes_come_in_turn() -> None:
    assert spread_classes(12).tolist() == [*range(10), 0, 1]


def test_test_images_are_measured_in_the_same_numbers_of_each_class(
    tmp_path: Path, write_split: Write
) -> None:
    random = np.random.default_rng(0)
    train, test = random.integers(0, 256, (2, 60, 28, 28))
    labels = np.concatenate([[0] * 4, np.arange(56) % 10])
    write_split(train, np.arange(60) % 10, "train")
    write_split(test, labels, "t10k")
    torch.manual_seed(0)
    model = Classifier().eval()
    moments, real = real_quality(model, 20, tmp_path)
    two_of_each = np.concatenate([np.flatnonzero(labels == label)[:2] for label in range(10)])
    images = np.pad(test, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)[two_of_each]
    assert real == quality(model, moments, images, labels[two_of_each])
    assert real.distance > 0


def test_accuracy_is_the_share_of_requested_classes() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32)).astype(np.uint8)
    features, classes = classify(model, images)
    requested = classes.copy()
    requested[:2] = (requested[:2] + 1) % 10
    score = quality(model, Moments.of(features), images, requested)
    assert score.accuracy == 0.75
    assert abs(score.distance) < 1e-3
