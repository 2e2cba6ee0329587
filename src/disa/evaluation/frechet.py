"""Fréchet distance between sets of features."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import DisaError

Float64s = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Mean [features] and covariance [features, features] of a set of features."""

    mean: Float64s
    covariance: Float64s

    @classmethod
    def of(cls, features: npt.NDArray[np.float32]) -> "Moments":
        """Moments of features [images, features]."""
        values = features.astype(np.float64)
        return cls(values.mean(0), np.cov(values, rowvar=False))


class MomentsSum:
    """Accumulates the moments of features batch by batch."""

    def __init__(self) -> None:
        self.count = 0
        self._origin: Float64s | None = None

    def add(self, features: npt.NDArray[np.float32]) -> None:
        """Add features [images, features]."""
        values = features.astype(np.float64)
        if self._origin is None:
            # Sums of squares around a point near the mean avoid a loss of precision.
            self._origin = values.mean(0)
            self._sum = np.zeros_like(self._origin)
            self._products = np.zeros((values.shape[1], values.shape[1]))
        values -= self._origin
        self.count += len(values)
        self._sum += values.sum(0)
        self._products += values.T @ values

    def moments(self) -> Moments:
        """The moments of all features.

        Raises:
            DisaError: there are fewer than two.
        """
        if self.count < 2 or self._origin is None:
            raise DisaError("a Fréchet distance needs at least two images on each side")
        mean = self._sum / self.count
        products = self._products - self.count * np.outer(mean, mean)
        return Moments(self._origin + mean, products / (self.count - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two normal distributions (Dowson and Landau, 1982).

    |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2). With Inception features this is the FID; with
    other features the numbers are not comparable to it.
    """
    root = _square_root(a.covariance)
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    shift = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance)
    squared = shift @ shift + spread - 2 * np.sqrt(cross.clip(min=0)).sum()
    # Rounding makes it negative for equal distributions.
    return float(np.maximum(squared, 0.0))


def few_images(generated: int, reference: int | None, width: int) -> str | None:
    """What to know about a distance of few images; None if there are more than features.

    The covariance of n images has at most the rank n - 1. With fewer images, the distance is larger
    (Chong and Forsyth, 2020), and with no more images than features it says little else.

    Args:
        generated: number of generated images.
        reference: number of images of the reference; None if only their moments are known.
        width: number of features of an image.
    """
    sides = {"generated images": generated, "images of the reference": reference}
    few = [f"{count} {name}" for name, count in sides.items() if count and count <= width]
    if not few:
        return None
    return (
        f"{' and '.join(few)} are few for {width} features: their covariance is singular, and the "
        "distance is larger than that of more images; compare it only with distances of as many "
        "images"
    )


def _square_root(symmetric: Float64s) -> Float64s:
    values, vectors = np.linalg.eigh(symmetric)
    root: Float64s = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
