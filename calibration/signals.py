"""The three signals of DiSA, for each AR iteration, with confidence intervals.

They are those by which the paper (arXiv 2505.20297, the section on evidence) argues that later
tokens need fewer denoising steps. Squares are divided by the variance of all tokens around
their mean, so that 1 means "nothing is known".

predictability
    E ||x - f(z)||^2 / E ||x - mean||^2. For MAR and Harmon, f is an MLP that is trained to
    predict the sampled token x from the backbone's condition z, and is judged on images it was
    not trained on. The conditions of a flow head are not one vector, so there f is the head's
    own guess from pure noise, x - v(x, t=1).
variance
    Mean over channels of the unbiased variance of repeated samples of a token in the same
    state (tokens so far, order, condition), divided by the same E ||x - mean||^2.
curvature
    Deviation of the deterministic denoising path from the line between noise and token; see
    `paths.curvature`.

Tokens of an image depend on each other and images do not: an interval is that of the mean over
images, 1.96 standard errors to each side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .mlp import MLP
from .observe import Observation, by_image

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

CONFIDENCE = 1.96
MAX_ROWS = 40_000


@dataclass(frozen=True)
class Signal:
    """Means over images for each AR iteration, and half the width of their 95 % intervals."""

    mean: Doubles
    half_width: Doubles

    @classmethod
    def of(cls, values: Doubles) -> "Signal":
        """From values [iterations, images]."""
        images = values.shape[1]
        if images < 2:
            return cls(values.mean(axis=1), np.full(len(values), np.inf))
        return cls(values.mean(axis=1), CONFIDENCE * values.std(axis=1, ddof=1) / np.sqrt(images))

    @property
    def tightness(self) -> float:
        """The widest interval's half as a share of the largest mean."""
        return float(self.half_width.max() / max(np.abs(self.mean).max(), 1e-12))

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": [round(float(value), 6) for value in self.mean],
            "half_width": [round(float(value), 6) for value in self.half_width],
        }


@dataclass(frozen=True)
class Signals:
    """The three signals; see the module."""

    predictability: Signal
    variance: Signal
    curvature: Signal

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name).to_json() for name in self.__dataclass_fields__}


Batches = Sequence[Sequence[Observation]]
"""For each batch of images, its AR iterations."""


def gather(batches: Batches, name: str) -> Doubles:
    """An attribute of all observations as [iterations, ..., images]."""
    return np.concatenate(
        [np.stack([getattr(seen, name) for seen in batch]) for batch in batches], axis=-1
    )


def token_variance(batches: Batches) -> float:
    """Mean over channels of the variance of all tokens."""
    tokens = np.concatenate([seen.sampled for batch in batches for seen in batch])
    return float(tokens.astype(np.float64).var(axis=0).mean())


def tightness(batches: Batches) -> float:
    """How wide the intervals of variance and curvature still are; see `Signal.tightness`."""
    return max(Signal.of(gather(batches, name)).tightness for name in ("variance", "curvature"))


def measure_signals(batches: Batches, seed: int) -> Signals:
    """The signals of all images that were drawn."""
    unit = token_variance(batches)
    if batches[0][0].guess_error is None:
        errors = mlp_errors(batches, seed)
    else:
        errors = gather(batches, "guess_error")
    return Signals(
        Signal.of(errors / unit),
        Signal.of(gather(batches, "variance") / unit),
        Signal.of(gather(batches, "curvature")),
    )


def mlp_errors(batches: Batches, seed: int) -> Doubles:
    """Squared error of the MLP on images held out, [iterations, images].

    One network sees all AR iterations. Two are trained, each on half of the images, and each is
    judged on the other half.
    """
    parity = []
    drawn = 0
    for batch in batches:
        images = len(batch[0].variance)
        parity.append((drawn + np.arange(images)) % 2)
        drawn += images
    networks = [_train(batches, parity, half, seed) for half in (0, 1)]
    parts = []
    for batch, half in zip(batches, parity, strict=True):
        rows = []
        for seen in batch:
            assert seen.condition is not None
            # Who was trained on the even images is asked about the odd ones.
            errors = [
                by_image(
                    np.square(network.predict(seen.condition) - seen.sampled).mean(axis=1),
                    len(half),
                )
                for network in networks
            ]
            rows.append(np.where(half == 0, errors[1], errors[0]))
        parts.append(np.stack(rows))
    return np.concatenate(parts, axis=1)


def _train(batches: Batches, parity: Sequence[npt.NDArray[np.int64]], half: int, seed: int) -> MLP:
    inputs, outputs = [], []
    for batch, of_image in zip(batches, parity, strict=True):
        for seen in batch:
            assert seen.condition is not None
            chosen = np.tile(of_image == half, seen.tokens)
            inputs.append(seen.condition[chosen])
            outputs.append(seen.sampled[chosen])
    x, y = np.concatenate(inputs), np.concatenate(outputs)
    if len(x) > MAX_ROWS:
        rows = np.random.default_rng(seed).choice(len(x), MAX_ROWS, replace=False)
        x, y = x[rows], y[rows]
    return MLP(x, y, seed)
