"""How an error in the tokens of one AR iteration propagates to the image.

All later tokens depend on an early token, but no token depends on the last ones. To measure this,
the tokens of one AR iteration are sampled with another number of steps, and everything after them
with the same noise as before. The change of the image then includes the change of these tokens and
all its effects.

    W = E ||change of the latents||^2 / E ||change of the tokens of the iteration||^2

The means are over images, the norms are sums of squares. Since both images come from the same
noise, the mean square difference bounds the squared Wasserstein distance between their
distributions. For small changes, the differences of several iterations add up without cross terms.
So the error of an iteration is weighted by W, divided by the mean of W over all tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...engines.array_types import Doubles
from ...runtime.pipeline import Pipeline
from ...runtime.sampling.head import Iteration
from ...runtime.stats import Stats
from .observe import check_finite

PLACES = 8
"""Number of measured AR iterations; the others are interpolated."""
USUAL_STEPS, OTHER_STEPS = 20, 5
TINY = 1e-12


@dataclass(frozen=True)
class OtherwiseAt:
    """A schedule that differs from the usual steps in one AR iteration."""

    place: int | None

    def steps(self, iteration: int, iterations: int) -> int:
        """Steps of an AR iteration."""
        del iterations
        return OTHER_STEPS if iteration == self.place else USUAL_STEPS


@dataclass(frozen=True)
class BatchResult:
    """The latents of a batch, and the tokens of each AR iteration."""

    latents: Doubles
    tokens: list[Doubles]


def places_of(iterations: int) -> list[int]:
    """The AR iterations that are measured."""
    spread = np.linspace(0, iterations - 1, min(PLACES, iterations))
    return [int(place) for place in np.unique(np.round(spread))]


def measure_carry(
    pipe: Pipeline,
    options: Any,
    conditions: Sequence[Any],
    batch_size: int,
    seed: int,
    advance: Callable[[int], object] = lambda images: None,
) -> Doubles:
    """W of every AR iteration, [iterations].

    Args:
        conditions: one for each image.
        advance: called with the number of images after each batch.

    Raises:
        DisaError: tokens or latents are not finite.
    """
    iterations = pipe.family.iterations(options)
    places = places_of(iterations)
    caused, moved = np.zeros(len(places)), np.zeros(len(places))
    for start in range(0, len(conditions), batch_size):
        part = conditions[start : start + batch_size]
        images = range(start, start + len(part))
        usual = _generate(pipe, options, part, seed, images, None)
        for index, place in enumerate(places):
            other = _generate(pipe, options, part, seed, images, place)
            caused[index] += np.square(other.latents - usual.latents).sum()
            moved[index] += np.square(other.tokens[place] - usual.tokens[place]).sum()
        advance(len(part))
    ratio = np.maximum(caused, TINY) / np.maximum(moved, TINY)
    return np.exp(np.interp(np.arange(iterations), places, np.log(ratio)))


def _generate(
    pipe: Pipeline,
    options: Any,
    conditions: Sequence[Any],
    seed: int,
    images: range,
    place: int | None,
) -> BatchResult:
    tokens: list[Doubles] = []

    def keep(iteration: Iteration) -> None:
        tokens.append(np.array(np.asarray(iteration.sampled), np.float64))

    changed = replace(options, schedule=OtherwiseAt(place), tolerance=0.0)
    outputs = pipe.generate(pipe.requests(conditions, changed, seed, images), Stats(), watch=keep)
    latents = np.stack([output.latents for output in outputs])
    check_finite([*tokens, latents], "tokens or latents of an image")
    return BatchResult(latents.astype(np.float64), tokens)
