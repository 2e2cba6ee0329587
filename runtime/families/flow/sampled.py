"""The tokens that a group of images sampled in one AR iteration.

The tokens of an image attend to each other in the head, so only whole images leave a call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ....engines.array_types import Ints
from ....engines.session import Array
from ...sampling.sampler import StepTable
from ..cohort import Group, Member


@dataclass(frozen=True)
class Sampled:
    """The sampled tokens of a group.

    Attributes:
        tokens: [tokens, batch, C].
        steps: denoising steps of each image, [batch].
        caches: keys and values of the backbone for the next AR iteration.
    """

    group: Group[Any]
    tokens: Array
    steps: Ints
    caches: Mapping[str, Array]


def count_cost(sample: Member, steps: int, tokens: int) -> None:
    """Add the cost of one AR iteration to an image."""
    sample.cost.steps.append(steps)
    sample.cost.head_rows += steps * tokens


def like_columns(group: Group[Any], tables: Sequence[StepTable]) -> list[list[int]]:
    """Group the images with equal options and steps; each is given by its column."""
    columns: dict[Any, list[int]] = {}
    for column, (sample, table) in enumerate(zip(group.samples, tables, strict=True)):
        columns.setdefault((id(table), id(sample.request.options)), []).append(column)
    return list(columns.values())
