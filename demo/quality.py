"""The quality of generated images, measured with the demo's classifier."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from disa.evaluation.frechet import Moments, frechet_distance

from .classifier import Classifier, classify
from .data import fashion_mnist


@dataclass(frozen=True)
class Quality:
    """The quality of a set of images.

    Attributes:
        accuracy: share of images that the classifier assigns to the requested class.
        distance: Fréchet distance to the training images, in features of the classifier.
    """

    accuracy: float
    distance: float


def quality(
    classifier: Classifier,
    real: Moments,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
) -> Quality:
    """Measure the quality of images.

    Args:
        real: moments of the features of the training images.
        images: [n, 32, 32].
        labels: the requested classes, [n].
    """
    features, classes = classify(classifier, images)
    accuracy = float((classes == labels).mean())
    return Quality(accuracy, frechet_distance(Moments.of(features), real))


def spread_classes(count: int) -> npt.NDArray[np.int64]:
    """All classes in turn, [count]."""
    return np.arange(count) % len(fashion_mnist.CLASS_NAMES)


def real_quality(classifier: Classifier, count: int, data: Path) -> tuple[Moments, Quality]:
    """Measure the real images.

    Args:
        count: number of test images.
        data: folder of the data set.

    Returns:
        Moments of the features of the training images, and the quality of test images, with as
        many images of each class as `spread_classes(count)`.
    """
    features, _ = classify(classifier, fashion_mnist.load("train", data)[0])
    moments = Moments.of(features)
    images, labels = fashion_mnist.load("t10k", data)
    rows = np.concatenate(
        [
            np.flatnonzero(labels == label)[: np.count_nonzero(spread_classes(count) == label)]
            for label in range(len(fashion_mnist.CLASS_NAMES))
        ]
    )
    return moments, quality(classifier, moments, images[rows], labels[rows])
