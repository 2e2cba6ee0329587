"""FID, Inception score, precision and recall, accuracy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DisaError
from .features import FeatureExtractor
from .frechet import Moments, MomentsSum, frechet_distance
from .image_sets import ImageSet
from .inception_score import SPLITS, InceptionScoreSum
from .reference import Statistics

NEIGHBOURHOOD = 3
PRC_BATCH = 10_000

Advance = Callable[[int], object]


@dataclass
class _Measured:
    """Results for one set of images.

    Attributes:
        features: of all images; empty unless they are needed.
        score: mean and standard deviation of the Inception score.
        right: number of images classified as the requested class.
    """

    moments: Moments
    features: list[npt.NDArray[np.float32]] = field(default_factory=list)
    score: tuple[float, float] | None = None
    right: int | None = None


def evaluate(
    images: ImageSet,
    reference: Statistics | ImageSet,
    extractor: FeatureExtractor,
    batch_size: int = 32,
    precision_recall: bool = False,
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Compare images with a reference.

    Only sums are stored, so there may be millions of images; precision and recall need the
    features of all images.

    Args:
        advance: called with the number of images after each batch.

    Returns:
        frechet_distance (FID with Inception features); inception_score_mean and _std if the network
        has logits; accuracy if it knows the classes that the images were generated of; precision
        and recall.

    Raises:
        DisaError: images are damaged, too few or not accepted by the network, or precision and
            recall are requested with a reference without images.
    """
    statistics = reference if isinstance(reference, Statistics) else None
    real_images = reference.images if isinstance(reference, Statistics) else reference
    if precision_recall and real_images is None:
        raise DisaError("precision and recall need the reference's images, not its statistics")
    measured = _measure(images, extractor, batch_size, precision_recall, advance)
    if real_images is not None:
        real = _measure(real_images, extractor, batch_size, precision_recall, advance)
    moments = statistics.moments if statistics else real.moments
    result: dict[str, Any] = {"frechet_distance": frechet_distance(measured.moments, moments)}
    if measured.score:
        result["inception_score_mean"], result["inception_score_std"] = measured.score
    if measured.right is not None:
        result["accuracy"] = measured.right / images.count
    if precision_recall:
        result |= _precision_recall(measured.features, real.features)
    return result


def _measure(
    images: ImageSet, extractor: FeatureExtractor, batch_size: int, keep: bool, advance: Advance
) -> _Measured:
    moments, features = MomentsSum(), []
    score = InceptionScoreSum(images.count) if images.count >= SPLITS else None
    right = None
    conditions = images.conditions
    # Prompts are not classes.
    known = conditions is not None and not isinstance(conditions[0], str)
    for batch in _batches(images, batch_size):
        seen = extractor(batch)
        if not np.isfinite(seen.features).all():
            raise DisaError(
                "the network gives features that are not finite: its weights are damaged"
            )
        if seen.classes is not None and conditions is not None and known:
            expected = conditions[moments.count : moments.count + len(batch)]
            right = (right or 0) + int(np.sum(seen.classes == np.asarray(expected)))
        moments.add(seen.features)
        if seen.logits is None:
            score = None
        elif score:
            score.add(seen.logits)
        if keep:
            features.append(seen.features)
        advance(len(batch))
    return _Measured(moments.moments(), features, score.score() if score else None, right)


def _batches(images: ImageSet, size: int) -> Iterator[npt.NDArray[np.uint8]]:
    batch: list[npt.NDArray[np.uint8]] = []
    for image in images:
        if batch and (len(batch) == size or batch[0].shape != image.shape):
            yield np.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield np.stack(batch)


def _precision_recall(
    generated: list[npt.NDArray[np.float32]], real: list[npt.NDArray[np.float32]]
) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al., 2019), computed by torch-fidelity."""
    import torch
    from torch_fidelity.metric_prc import calculate_precision_recall_part

    sides = [torch.from_numpy(np.concatenate(side)) for side in (generated, real)]
    if min(map(len, sides)) <= NEIGHBOURHOOD:
        raise DisaError(f"precision and recall need more than {NEIGHBOURHOOD} images a side")
    precision, recall = calculate_precision_recall_part(*sides, NEIGHBOURHOOD, PRC_BATCH)
    return {"precision": precision, "recall": recall}
