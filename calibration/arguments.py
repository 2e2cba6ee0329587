"""Checks the arguments of a calibration that is called from Python, before anything is measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..checked_numbers import positive_number, whole_number
from ..errors import DisaError, InvalidRequest
from ..runtime.pipeline import Pipeline
from ..runtime.sampling.schedule import MAX_STEPS

MIN_BATCH = 2
"""A batch of one image has no variance between images."""
MIN_REFERENCE = 6
WITHOUT_EFFECT = ("schedule", "tolerance")
"""Sampling options that a measurement replaces by its own."""


def check_limits(target: float | None, refresh: float | None) -> None:
    """Check the errors that a fit may have.

    Raises:
        InvalidRequest: one is not a number above 0.
    """
    for name, value in (
        ("the target", target),
        ("the error of passes that are not full", refresh),
    ):
        if value is not None:
            positive_number(name, value)


def check_measurement(
    precision: float,
    reference_steps: int,
    seed: int,
    batch_size: int | None,
    sampling: Mapping[str, Any],
) -> None:
    """Check how a plan is to be measured.

    Raises:
        InvalidRequest: a value is not valid, or an option would have no effect.
    """
    positive_number("the precision", precision, zero=True)
    whole_number("the number of reference steps", reference_steps, MIN_REFERENCE, MAX_STEPS)
    whole_number("the seed", seed, 0, 2**63 - 1)
    if batch_size is not None:
        whole_number("the batch size", batch_size, MIN_BATCH)
    for name in WITHOUT_EFFECT:
        if sampling.get(name) is not None:
            raise InvalidRequest(
                f"a calibration measures without {name}, which would have no effect: leave it out"
            )


def checked_conditions(pipe: Pipeline, conditions: Sequence[Any]) -> list[Any]:
    """The condition of each image, as the plan's graphs take it.

    Raises:
        DisaError: a class does not exist, a prompt is empty, or there are fewer than two.
    """
    given = (conditions,) if pipe.family.classes is not None else (None, conditions)
    found = pipe.conditions(*given)
    if len(found) < MIN_BATCH:
        raise DisaError("calibration compares images: give two or more conditions (--num)")
    return found
