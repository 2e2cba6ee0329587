"""The three signals of DiSA, for each AR iteration, with confidence intervals.

They are those by which the paper (arXiv 2505.20297, the section on evidence) argues that later
tokens need fewer denoising steps. Squares are divided by the variance of all tokens around
their mean, so that 1 means "nothing is known".

predictability
    E ||x - f(z)||^2 / E ||x - mean||^2. For MAR and Harmon, f is an MLP that is trained to
    predict the sampled token x from the backbone's condition z, and is judged on images it was
    not trained on. With guidance the token depends on the conditions of both halves and on the
    scale, so z is all of these. The conditions of a flow head are not one vector, so there f is
    the head's own guess from pure noise, x - v(x, t=1).
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

from ..errors import DisaError
from .mlp import MLP
from .observe import Observation

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]

CONFIDENCE = 1.96
MAX_ROWS = 40_000
FOLDS = 4
"""Networks, each judged on the images that it has not seen."""
HELD_OUT = 5
"""One image in so many of those that a network sees decides when its training ends."""


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
    """Mean over channels of the variance of all tokens; DisaError if they are all alike."""
    tokens = np.concatenate([seen.sampled for batch in batches for seen in batch])
    variance = float(tokens.astype(np.float64).var(axis=0).mean())
    if not variance:
        raise DisaError("all tokens were alike, so nothing can be measured: the plan is broken")
    return variance


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

    One network sees all AR iterations of most images and is judged on the others, in turn. It
    is trained on means of repeated samples, which say more of what can be predicted than
    single ones, and is judged on single ones.
    """
    images = sum(len(batch[0].variance) for batch in batches)
    folds = min(FOLDS, images)
    rows = Rows.of(batches)
    fold = rows.image % folds
    square = np.empty(len(rows.image))
    for judged in range(folds):
        network = _train(rows, fold != judged, seed)
        error = network.predict(rows.given[fold == judged]) - rows.sampled[fold == judged]
        square[fold == judged] = np.square(error).mean(axis=1)
    # Tokens of one iteration and image are averaged.
    place = rows.iteration * images + rows.image
    total = np.bincount(place, square, minlength=len(batches[0]) * images)
    mean: Doubles = (total / np.bincount(place)).reshape(-1, images)
    return mean


@dataclass(frozen=True)
class Rows:
    """All tokens of all images: what the head was given, and what it drew.

    Attributes:
        iteration, image: of each token, [rows].
    """

    given: Floats
    sampled: Floats
    mean: Floats
    iteration: npt.NDArray[np.int64]
    image: npt.NDArray[np.int64]

    @classmethod
    def of(cls, batches: Batches) -> "Rows":
        drawn, parts = 0, []
        for batch in batches:
            images = len(batch[0].variance)
            for seen in batch:
                image = drawn + np.tile(np.arange(images), seen.tokens)
                iteration = np.full(len(image), seen.index)
                parts.append((seen.given, seen.sampled, seen.mean, iteration, image))
            drawn += images
        return cls(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _train(rows: Rows, seen: npt.NDArray[np.bool_], seed: int) -> MLP:
    chosen = np.flatnonzero(seen)
    if len(chosen) > MAX_ROWS:
        chosen = np.random.default_rng(seed).choice(chosen, MAX_ROWS, replace=False)
    _, image = np.unique(rows.image[chosen], return_inverse=True)
    held_out = image % HELD_OUT == 0
    if held_out.all():  # a single image
        held_out = np.arange(len(chosen)) % HELD_OUT == 0
    return MLP(rows.given[chosen], rows.mean[chosen], held_out, seed)
