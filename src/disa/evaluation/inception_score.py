"""The Inception score, computed from logits batch by batch."""

import numpy as np
import numpy.typing as npt

from ..errors import DisaError

SPLITS = 10
SHUFFLE_SEED = 2020


class InceptionScoreSum:
    """The score of Salimans et al. (2016) over ten splits, as torch-fidelity computes it.

    The split of an image follows from its position, so only sums are stored:
    exp(mean of KL(p(y|x) || p(y))) is exp(mean of p log p - q log q), where q is the mean of p.

    Args:
        count: total number of images.
    """

    def __init__(self, count: int) -> None:
        if count < SPLITS:
            raise DisaError(f"an Inception score needs at least {SPLITS} images, not {count}")
        shuffled = np.random.RandomState(SHUFFLE_SEED).permutation(count)
        self._split = np.empty(count, np.int64)
        for split in range(SPLITS):
            start, stop = split * count // SPLITS, (split + 1) * count // SPLITS
            self._split[shuffled[start:stop]] = split
        self._seen = 0

    def add(self, logits: npt.NDArray[np.float32]) -> None:
        """Add logits [images, classes] of the next images."""
        values = logits.astype(np.float64)
        log_p = values - values.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        if not self._seen:
            self._p = np.zeros((SPLITS, logits.shape[1]))
            self._negative_entropy = np.zeros(SPLITS)
        splits = self._split[self._seen : self._seen + len(values)]
        np.add.at(self._p, splits, p)
        np.add.at(self._negative_entropy, splits, (p * log_p).sum(1))
        self._seen += len(values)

    def score(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits."""
        counts = np.bincount(self._split, minlength=SPLITS)
        q = self._p / counts[:, None]
        divergence = self._negative_entropy / counts - (q * np.log(q)).sum(1)
        scores = np.exp(divergence)
        return float(scores.mean()), float(scores.std())
