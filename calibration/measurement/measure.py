"""Generates images with many steps and measures them until the intervals are narrow enough."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...engines.array_types import Doubles
from ...errors import DisaError
from ...runtime.families.masked.options import ADAPTIVE_SAMPLERS
from ...runtime.pipeline import Pipeline
from ...runtime.sampling.sampler import SamplerName
from ...runtime.sampling.schedule import AnnealedSchedule, Schedule, Strategy
from ...runtime.stats import Stats
from .dependence import Dependence
from .observe import Candidates, Observation, Observer
from .refresh import RefreshErrors
from .signals import Batches, Signals, measure_signals, tightness
from .tradeoff import AdaptivePoint, Tradeoff, adaptive_points, measure_tradeoff

COUNTS = (2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50)
TOLERANCES = (0.02, 0.05, 0.1, 0.2)
LEAST_IMAGES = 16
"""Images before intervals are believed: those of fewer are too narrow, or narrow by chance."""


@dataclass(frozen=True)
class Measurement:
    """The measurement of a plan.

    Attributes:
        images: number of generated images.
        tightness: half-width of the widest interval of variance and curvature, as a share of
            the signal's largest mean.
        signals: the signals of every AR iteration.
        tradeoff: error and cost of every step count.
        adaptive: error and cost of adaptive steps, for several tolerances.
        backbone: seconds of the backbone for an image in each AR iteration, [iterations].
        dependence: errors of tokens that are sampled together, if measured.
        refresh: errors of a cached backbone, if measured.
    """

    images: int
    tightness: float
    signals: Signals
    tradeoff: Tradeoff
    adaptive: tuple[AdaptivePoint, ...]
    backbone: Doubles | None = None
    dependence: Dependence | None = None
    refresh: RefreshErrors | None = None


def measure(
    pipe: Pipeline,
    options: Any,
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
        options: sampling options; their schedule is not used.
        conditions: one for each image; fewer images are generated if `precision` is reached.
        many: steps of each AR iteration whose samples count as exact.
        precision: stop when `tightness` is at most this, but not before `LEAST_IMAGES`.
        base: schedule whose steps adaptive denoising may skip.
        carry: weight of an error in each AR iteration, [iterations]; see `error_propagation`.
        advance: called with the number of images after each batch.

    Raises:
        DisaError: there are fewer than two images, `many` is too small, or samples are not finite.
    """
    counts = [count for count in COUNTS if count <= many // 2]
    if len(conditions) < 2 or batch_size < 1:
        raise DisaError("calibration compares images: give --num 2 or more")
    if len(counts) < 2:
        raise DisaError(f"{many} reference steps are too few to compare with: give 6 or more")
    # The steps cover the same timesteps as annealed runs, with which they are compared.
    constant = AnnealedSchedule(many, many, Strategy.CONSTANT)
    reference = replace(options, schedule=constant, tolerance=0.0)
    # Flow families have one sampler, whose steps can be skipped.
    adaptable = getattr(options, "sampler", SamplerName.DDPM) in ADAPTIVE_SAMPLERS
    candidates = Candidates(
        tuple(counts), base, pipe.family.iterations(options), TOLERANCES if adaptable else ()
    )
    batches: list[list[Observation]] = []
    generated, reached = 0, float("inf")
    least = min(LEAST_IMAGES, len(conditions))
    while generated < least or (generated < len(conditions) and reached > precision):
        size = min(batch_size, len(conditions) - generated)
        if len(conditions) - generated - size == 1:
            size += 1  # a batch of one image has no variance between images
        images = range(generated, generated + size)
        stats = Stats()
        observer = Observer(candidates, seed + 1 + generated, stats)
        wanted = [conditions[index] for index in images]
        pipe.generate(pipe.requests(wanted, reference, seed, images), stats, watch=observer)
        batches.append(observer.observations)
        generated += size
        reached = tightness(batches)
        advance(size)
    return Measurement(
        generated,
        reached,
        measure_signals(batches, seed),
        measure_tradeoff(batches, counts, carry),
        adaptive_points(batches, candidates.tolerances, carry),
        backbone_seconds(batches),
    )


def backbone_seconds(batches: Batches) -> Doubles:
    """Seconds of the backbone for an image in each AR iteration, the median of the batches."""
    seconds = [[seen.backbone / len(seen.variance) for seen in batch] for batch in batches]
    median: Doubles = np.median(seconds, axis=0)
    return median
