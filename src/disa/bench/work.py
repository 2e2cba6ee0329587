"""Counts the operations and weights for a batch, for the families that have a formula."""

from collections.abc import Callable

from ..engines.plan.plan import Plan
from ..runtime.families.options import SamplingOptions
from .calls import Work
from .mar_work import count_mar

WIDTHS = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1}
"""Bytes of a weight in each precision."""

Counter = Callable[[Plan, SamplingOptions, int, float], Work]
"""Counts the work of a batch.

Its arguments are the plan, the checked sampling options, the number of images, and the bytes of a
weight in the engine relative to those in the plan.
"""

COUNTERS: dict[str, Counter] = {"mar": count_mar}
"""The counter of each family."""


def count_work(plan: Plan, options: SamplingOptions, batch: int, precision: str) -> Work | None:
    """The operations and weights for a batch; None for a family that has no formula.

    Args:
        options: checked sampling options.
        batch: number of images.
        precision: precision in which the engine computes; it determines the bytes of a weight.
    """
    count = COUNTERS.get(plan.manifest.family)
    if count is None:
        return None
    weight_scale = WIDTHS.get(precision, 4) / WIDTHS.get(plan.manifest.precision, 4)
    return count(plan, options, batch, weight_scale)
