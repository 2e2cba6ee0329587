"""How far an error in the tokens of one AR iteration carries over to the image.

An early token is what all later ones are drawn from, the last ones are seen by nobody. The tokens
of one iteration are drawn with other steps and all that follows from the same noise as before:
the image then moves by as much as this error and what it brings about.

    W = E ||change of the latents||^2 / E ||change of the tokens of the iteration||^2

over images, the squares being sums. Since both images come from the same noise, the mean square
between them bounds the squared Wasserstein distance between their distributions, and for small
changes that of several iterations is the sum of theirs, cross terms left out. So an error of an
iteration counts W times. Divided by their mean over all tokens, the W are weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.head import Iteration
from ..runtime.noise import PhiloxNoise
from ..runtime.pipeline import Pipeline
from ..runtime.stats import Stats

Doubles = npt.NDArray[np.float64]

PLACES = 8
"""AR iterations that are tried; the others lie between them."""
USUAL_STEPS, OTHER_STEPS = 20, 5
TINY = 1e-12


@dataclass(frozen=True)
class OtherwiseAt:
    """A schedule of the usual steps, and of others in one AR iteration."""

    place: int | None

    def steps(self, iteration: int, iterations: int) -> int:
        """Steps of an AR iteration."""
        del iterations
        return OTHER_STEPS if iteration == self.place else USUAL_STEPS


@dataclass(frozen=True)
class Drawn:
    """A batch: its latents, and the tokens of each AR iteration."""

    latents: Doubles
    tokens: list[Doubles]


def places_of(iterations: int) -> list[int]:
    """The AR iterations that are tried."""
    spread = np.linspace(0, iterations - 1, min(PLACES, iterations))
    return [int(place) for place in np.unique(np.round(spread))]


def measure_carry(
    pipe: Pipeline,
    settings: Any,
    conditions: Sequence[Any],
    batch_size: int,
    seed: int,
    advance: Callable[[int], object] = lambda images: None,
) -> Doubles:
    """W of every AR iteration, [iterations].

    Args:
        conditions: one for each image.
        advance: called with the number of images after each batch.
    """
    iterations = pipe.family.iterations(settings)
    places = places_of(iterations)
    caused, moved = np.zeros(len(places)), np.zeros(len(places))
    for start in range(0, len(conditions), batch_size):
        part = conditions[start : start + batch_size]
        images = range(start, start + len(part))
        usual = _draw(pipe, settings, part, PhiloxNoise(seed, images), None)
        for index, place in enumerate(places):
            other = _draw(pipe, settings, part, PhiloxNoise(seed, images), place)
            caused[index] += np.square(other.latents - usual.latents).sum()
            moved[index] += np.square(other.tokens[place] - usual.tokens[place]).sum()
        advance(len(part))
    ratio = np.maximum(caused, TINY) / np.maximum(moved, TINY)
    return np.exp(np.interp(np.arange(iterations), places, np.log(ratio)))


def _draw(
    pipe: Pipeline,
    settings: Any,
    conditions: Sequence[Any],
    noise: PhiloxNoise,
    place: int | None,
) -> Drawn:
    tokens: list[Doubles] = []

    def keep(iteration: Iteration) -> None:
        tokens.append(np.array(np.asarray(iteration.sampled), np.float64))

    changed = replace(settings, schedule=OtherwiseAt(place), tolerance=0.0)
    _, latents = pipe.draw(conditions, changed, noise, Stats(), keep)
    return Drawn(latents.astype(np.float64), tokens)
