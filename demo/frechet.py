"""Fréchet distance between sets of features."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Mean [features] and covariance [features, features] of a set of features."""

    mean: Floats
    covariance: Floats

    @classmethod
    def of(cls, features: npt.NDArray[np.float32]) -> "Moments":
        """Moments of features [images, features]."""
        values = features.astype(np.float64)
        return cls(values.mean(0), np.cov(values, rowvar=False))


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two normal distributions (Dowson and Landau 1982).

    |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2). The distance called FID is this one in
    Inception features; with other features the numbers mean something else.
    """
    root = _square_root(a.covariance)
    cross = np.linalg.eigvalsh(root @ b.covariance @ root)
    shift = a.mean - b.mean
    spread = np.trace(a.covariance) + np.trace(b.covariance)
    return float(shift @ shift + spread - 2 * np.sqrt(cross.clip(min=0)).sum())


def _square_root(symmetric: Floats) -> Floats:
    values, vectors = np.linalg.eigh(symmetric)
    root: Floats = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
