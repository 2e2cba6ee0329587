"""The error of sampling several tokens of an image independently of each other.

The tokens of one AR iteration are sampled independently. If tokens were sampled one at a time, each
from its distribution given all tokens before it, then by the chain rule the image would come from
the joint distribution of the model. So a token that is sampled while fewer tokens are known has an
error. It is measured like the error of too few denoising steps: as the energy distance between the
distribution that the token is sampled from and the distribution given all tokens before it.

To measure it, images are generated. Then tokens are predicted again while only part of the tokens
before them are known, with the same noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ...engines.array_types import Doubles, Floats, Ints
from ...errors import DisaError
from ...runtime.families.masked.family import MaskedFamily
from ...runtime.generation import generate
from ...runtime.pipeline import Pipeline
from ...runtime.sampling.head import Iteration
from ...runtime.sampling.schedule import AnnealedSchedule, Strategy
from ...runtime.stats import Stats
from .isotonic import falling
from .observe import PAIRS, by_image, check_finite, energy_distance
from .signals import Signal

PLACES = 10
"""How many different numbers of known tokens are measured; others are interpolated."""
PROBES = 8
"""Number of tokens of an image that are predicted at each place."""
STEPS = 20
"""Denoising steps of all measured tokens."""
MAX_TOKENS = 4096
"""Largest number of tokens of an image; errors are stored for every pair of them."""


@dataclass(frozen=True)
class Dependence:
    """Errors of tokens that are predicted while fewer tokens are known.

    Attributes:
        places: numbers of known tokens, ascending from 0 to all tokens but one, [places].
        error: energy distance in standard deviations of a token, [places, places]. Row i, column j
            is the error of the tokens after the first `places[j]` ones if only the first
            `places[i]` are known; 0 for i >= j.
        half_width: half the width of the 95 % intervals, [places, places].
    """

    places: Ints
    error: Doubles
    half_width: Doubles

    @cached_property
    def every(self) -> Doubles:
        """The error for every pair of numbers of known tokens, [tokens, tokens].

        It is interpolated bilinearly in the square root of the number of known tokens, in which the
        places are spaced evenly. For the interpolation, the part below the diagonal is the negative
        of the part above it, so that the error is 0 on the diagonal and grows in proportion to the
        distance from it, like the variance of a random walk. In the result the lower part is 0.
        """
        numbers = np.arange(self.places[-1] + 1)
        both = self.error - self.error.T
        place = np.interp(np.sqrt(numbers), np.sqrt(self.places), np.arange(len(self.places)))
        low = np.minimum(place.astype(int), max(len(self.places) - 2, 0))
        mix = np.zeros((len(numbers), len(self.places)))
        mix[np.arange(len(numbers)), low] = 1 - (place - low)
        mix[np.arange(len(numbers)), np.minimum(low + 1, len(self.places) - 1)] += place - low
        found: Doubles = np.maximum(np.triu(mix @ both @ mix.T, 1), 0)
        return found


def places_of(tokens: int) -> Ints:
    """The numbers of known tokens that are measured."""
    share = np.linspace(0, 1, min(PLACES, tokens))
    return np.unique(np.round(np.square(share) * (tokens - 1))).astype(np.int64)


def measure_dependence(
    pipe: Pipeline,
    options: Any,
    conditions: Sequence[Any],
    batch_size: int,
    seed: int,
    advance: Callable[[int], object] = lambda images: None,
) -> Dependence:
    """Measure a plan of a family of masked generation.

    Args:
        conditions: one for each image.
        advance: called with the number of images after each batch.

    Raises:
        DisaError: the family is another one, there are too many tokens, or samples are not finite.
    """
    family = pipe.family
    if not isinstance(family, MaskedFamily):
        raise DisaError(
            f"the AR iterations of a {pipe.plan.manifest.family} model are fixed: fit steps"
        )
    steady = replace(
        options, schedule=AnnealedSchedule(STEPS, STEPS, Strategy.CONSTANT), tolerance=0.0
    )
    distances, squares, places = [], [], np.zeros(0, np.int64)
    for start in range(0, len(conditions), batch_size):
        part = conditions[start : start + batch_size]
        images = range(start, start + len(part))
        with pipe.lock:
            stats = Stats()
            samples = family.start(pipe.requests(part, steady, seed, images), stats)
            generate(family, samples, stats)
            tokens = np.asarray(samples[0].cohort.arrays["tokens"], np.float64)
            if len(tokens) > MAX_TOKENS:
                raise DisaError(
                    f"AR iterations are fitted for at most {MAX_TOKENS} tokens, and these images "
                    f"have {len(tokens)}: fit steps, or a smaller size"
                )
            places = places_of(len(tokens))
            distances.append(_distances(family, samples, places, seed + 1 + start))
        squares.append(tokens.reshape(-1, tokens.shape[-1]))
        advance(len(part))
    unit = np.sqrt(np.concatenate(squares).var(axis=0).mean())
    values = np.concatenate(distances, axis=-1) / unit
    signal = Signal.of(values.reshape(len(places) ** 2, -1))
    shape = (len(places), len(places))
    mean, half = signal.mean.reshape(shape), np.triu(signal.half_width.reshape(shape), 1)
    for column in range(len(places)):
        # The error falls with the number of known tokens, to 0 when all tokens before are known.
        mean[: column + 1, column] = np.maximum(falling(mean[: column + 1, column]), 0)
        mean[column:, column] = 0
    return Dependence(places, mean, half)


def _distances(
    family: MaskedFamily[Any], samples: Sequence[Any], places: Ints, seed: int
) -> Doubles:
    """Energy distances of a batch, [places, places, batch]."""
    length, batch = len(samples[0].order), len(samples)
    found = np.zeros((len(places), len(places), batch))
    rng = np.random.default_rng(seed)
    for column, turn in enumerate(places.tolist()):
        probes = range(turn, min(turn + PROBES, length))
        noises: list[Floats] = []
        expected: list[Floats] = []
        for row in range(column, -1, -1):
            again: list[Floats] = []
            watch = partial(_sample_again, rng, noises, again)
            family.look_ahead(samples, int(places[row]), probes, Stats(), watch)
            check_finite(again, f"tokens predicted when {places[row]} are known")
            expected = expected or again
            found[row, column] = by_image(energy_distance(again, expected), batch)
    return found


def _sample_again(
    rng: np.random.Generator, noises: list[Floats], into: list[Floats], iteration: Iteration
) -> None:
    """Sample the tokens of an iteration with the given noises; if there are none, with new ones."""
    if not noises:
        shape = (1 + len(iteration.table), *np.shape(iteration.sampled))
        noises.extend(rng.standard_normal(shape, np.float32) for _ in range(PAIRS))
    into.extend(np.asarray(iteration.denoise(iteration.table, noise)) for noise in noises)
