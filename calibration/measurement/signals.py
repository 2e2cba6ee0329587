"""The three signals of DiSA, for each AR iteration, with confidence intervals.

From these signals the paper (arXiv 2505.20297, the section on evidence) concludes that later tokens
need fewer denoising steps. Squared errors are divided by the variance of all tokens around their
mean, so that 1 means "nothing is known".

predictability
    E ||x - f(z)||^2 / E ||x - mean||^2. For MAR and Harmon, f is an MLP that is trained to
    predict the sampled token x from the backbone's condition z, and is evaluated on images it was
    not trained on. With guidance the token depends on the conditions of both halves and on the
    guidance scale, so z contains all of these. The condition of a flow head is not a single vector,
    so there f is the head's own prediction from pure noise, x - v(x, t=1).
variance
    Mean over channels of the unbiased variance of repeated samples of a token in the same
    state (tokens so far, order, condition), divided by E ||x - mean||^2.
curvature
    Deviation of the deterministic denoising path from the line between noise and token; see
    `paths.curvature`.

Tokens of one image depend on each other, but different images are independent. So a confidence
interval is that of the mean over images, 1.96 standard errors to each side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...engines.array_types import Doubles, Floats, Ints
from ...errors import DisaError
from .mlp import MLP
from .observe import Observation

CONFIDENCE = 1.96
"""Half the width of a 95 % interval in standard errors."""
MAX_ROWS = 40_000
"""Most tokens that a network is trained on."""
FOLDS = 4
"""Number of networks, each evaluated on the images that it was not trained on."""
HELD_OUT = 5
"""Of the training images of a network, one in this many decides when training stops."""


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
        """Half the width of the widest interval as a share of the largest mean."""
        return float(self.half_width.max() / max(np.abs(self.mean).max(), 1e-12))

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": [round(float(value), 6) for value in self.mean],
            "half_width": [round(float(value), 6) for value in self.half_width],
        }


@dataclass(frozen=True)
class Signals:
    """The three signals; see the module's description."""

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
    """Mean over channels of the variance of all tokens.

    Raises:
        DisaError: all tokens are equal.
    """
    tokens = np.concatenate([seen.sampled for batch in batches for seen in batch])
    variance = float(tokens.astype(np.float64).var(axis=0).mean())
    if not variance:
        raise DisaError("all tokens are equal, so nothing can be measured: the plan is damaged")
    return variance


def tightness(batches: Batches) -> float:
    """The tightness of variance and curvature so far; see `Signal.tightness`."""
    return max(Signal.of(gather(batches, name)).tightness for name in ("variance", "curvature"))


def measure_signals(batches: Batches, seed: int) -> Signals:
    """The signals of all images."""
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
    """Squared error of the MLP on held-out images, [iterations, images].

    Each network is trained on all AR iterations of most images and evaluated on the other images.
    It is trained on means of repeated samples, which are better targets than single samples, and
    evaluated on single samples.
    """
    images = sum(len(batch[0].variance) for batch in batches)
    folds = min(FOLDS, images)
    rows = SignalRows.of(batches)
    fold = rows.image % folds
    square = np.empty(len(rows.image))
    for fold_index in range(folds):
        network = _train(rows, fold != fold_index, seed)
        error = network.predict(rows.given[fold == fold_index]) - rows.sampled[fold == fold_index]
        square[fold == fold_index] = np.square(error).mean(axis=1)
    # Tokens of one iteration and image are averaged.
    place = rows.iteration * images + rows.image
    total = np.bincount(place, square, minlength=len(batches[0]) * images)
    mean: Doubles = (total / np.bincount(place)).reshape(-1, images)
    return mean


@dataclass(frozen=True)
class SignalRows:
    """All tokens of all images: the inputs of the head, and its samples.

    Attributes:
        iteration, image: of each token, [rows].
    """

    given: Floats
    sampled: Floats
    mean: Floats
    iteration: Ints
    image: Ints

    @classmethod
    def of(cls, batches: Batches) -> "SignalRows":
        first, parts = 0, []
        for batch in batches:
            images = len(batch[0].variance)
            for seen in batch:
                image = first + np.tile(np.arange(images), seen.tokens)
                iteration = np.full(len(image), seen.index)
                parts.append((seen.given, seen.sampled, seen.mean, iteration, image))
            first += images
        return cls(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _train(rows: SignalRows, seen: npt.NDArray[np.bool_], seed: int) -> MLP:
    chosen = np.flatnonzero(seen)
    if len(chosen) > MAX_ROWS:
        chosen = np.random.default_rng(seed).choice(chosen, MAX_ROWS, replace=False)
    _, image = np.unique(rows.image[chosen], return_inverse=True)
    held_out = image % HELD_OUT == 0
    if held_out.all():  # a single image
        held_out = np.arange(len(chosen)) % HELD_OUT == 0
    return MLP(rows.given[chosen], rows.mean[chosen], held_out, seed)
