"""Draws images with many steps and measures, until the intervals are tight enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DisaError
from ..runtime.noise import PhiloxNoise
from ..runtime.pipeline import Pipeline
from ..runtime.sampler import SamplerName
from ..runtime.schedule import AnnealedSchedule, Schedule, Strategy
from ..runtime.settings import ADAPTIVE_SAMPLERS
from ..runtime.stats import Stats
from .fit import AdaptivePoint, Doubles, Tradeoff, adaptive_points, measure_tradeoff
from .observe import Candidates, Observation, Observer
from .signals import Signals, measure_signals, tightness

COUNTS = (2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50)
TOLERANCES = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Measurement:
    """What was measured on a plan.

    Attributes:
        images: images that were drawn.
        tightness: half-width of the widest interval of variance and curvature, as a share of
            the signal's largest mean.
        adaptive: error and cost of adaptive steps, for several tolerances.
    """

    images: int
    tightness: float
    signals: Signals
    tradeoff: Tradeoff
    adaptive: tuple[AdaptivePoint, ...]


def measure(
    pipe: Pipeline,
    settings: Any,
    conditions: Sequence[Any],
    *,
    many: int,
    precision: float,
    batch_size: int,
    base: Schedule,
    carry: Doubles,
    seed: int = 0,
    advance: Callable[[int], object] = lambda images: None,
) -> Measurement:
    """Measure signals, and the errors of step counts, on a plan.

    Args:
        settings: sampling options; their schedule is not used.
        conditions: one for each image that may be drawn.
        many: steps of each AR iteration that stand for the exact distribution.
        precision: stop when `tightness` is not above this.
        base: steps that adaptive denoising chooses from.
        carry: how far an error of each AR iteration carries over, [iterations].
        advance: called with the number of images after each batch.

    Raises:
        DisaError: fewer than two images, `many` is not above the smallest counts, or what is
            drawn is not finite.
    """
    counts = [count for count in COUNTS if count <= many // 2]
    if len(conditions) < 2 or batch_size < 1:
        raise DisaError("calibration compares images: give --num 2 or more")
    if len(counts) < 2:
        raise DisaError(f"{many} reference steps are too few to compare with: give 6 or more")
    # The sampler's range stays that of annealed runs, whose counts are compared.
    constant = AnnealedSchedule(many, many, Strategy.CONSTANT)
    reference = replace(settings, schedule=constant, tolerance=0.0)
    # Flow families have one sampler, which adapts.
    adaptable = getattr(settings, "sampler", SamplerName.DDPM) in ADAPTIVE_SAMPLERS
    candidates = Candidates(
        tuple(counts), base, pipe.family.iterations(settings), TOLERANCES if adaptable else ()
    )
    batches: list[list[Observation]] = []
    drawn, reached = 0, float("inf")
    while drawn < len(conditions) and reached > precision:
        size = min(batch_size, len(conditions) - drawn)
        if len(conditions) - drawn - size == 1:
            size += 1  # a last image alone would say nothing about its batch
        images = range(drawn, drawn + size)
        observer = Observer(candidates, seed + 1 + drawn)
        wanted = [conditions[index] for index in images]
        pipe.draw(wanted, reference, PhiloxNoise(seed, images), Stats(), observer)
        batches.append(observer.observations)
        drawn += size
        reached = tightness(batches)
        advance(size)
    return Measurement(
        drawn,
        reached,
        measure_signals(batches, seed),
        measure_tradeoff(batches, counts, carry),
        adaptive_points(batches, candidates.tolerances, carry),
    )
