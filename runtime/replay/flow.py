"""Replays recorded runs of FlowAR and xAR with a plan."""

from typing import Any

import numpy as np

from ...engines.array_types import Floats, Ints
from ...errors import DisaError
from ..families.flow.options import FlowOptions
from ..pipeline import Pipeline
from ..sampling.head import Iteration
from ..sampling.schedule import AnnealedSchedule
from .recorded_noise import replayed
from .reference import MAX_IMAGES, Difference, RecordedRun, difference


class FlowReplay:
    """The recorded random numbers of a flow-matching model, as a noise source.

    Recorded arrays are [rows, tokens, C]; with guidance FlowAR records unconditional rows
    after the conditional ones, and their noise has no effect on the result.
    """

    def __init__(self, reference: RecordedRun, images: int) -> None:
        self._reference, self._images = reference, images

    def order(self, tokens: int) -> Ints:
        """These families have only one order."""
        return np.repeat(np.arange(tokens)[:, None], self._images, axis=1)

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, ...]) -> Floats:
        """The recorded noise of an AR iteration, [draws, tokens, batch, C]."""
        first = self._reference.recorded(iteration, "draw", "initial_draw")
        more = "step_draws" in self._reference.steps[iteration]
        recorded = 1 + (self._reference.recorded(iteration, "step_draws") if more else 0)
        if recorded != draws:
            raise DisaError(
                f"{self._reference.path}: iteration {iteration} has {recorded} noise arrays, but "
                f"the recorded options need {draws}"
            )
        self._reference.check_noise(draws, shape)
        return np.stack([self._rows(f"draw_{first + i:04d}", shape) for i in range(draws)])

    def compare(self, iteration: Iteration) -> Difference:
        """Compare the tokens of an AR iteration with the recorded ones."""
        sampled = np.asarray(iteration.sampled)
        shape = (len(iteration.predicted), self._images, sampled.shape[-1])
        expected = self._rows(f"sampled_{iteration.index:03d}", shape)
        return Difference(
            f"iteration {iteration.index}",
            len(iteration.table),
            difference(sampled.reshape(shape), expected),
        )

    def _rows(self, name: str, shape: tuple[int, ...]) -> Floats:
        """The rows of the images in a recorded array, [tokens, batch, C]."""
        tokens, batch, *rest = shape
        array = self._reference[name]
        if array.ndim != 3 or len(array) < batch or array.shape[1:] != (tokens, *rest):
            raise DisaError(
                f"{self._reference.path}: {name} has shape {array.shape}, but at least "
                f"{(batch, tokens, *rest)} is needed"
            )
        return array[:batch].swapaxes(0, 1).astype(np.float32)


def replay_flow(pipe: Pipeline, reference: RecordedRun) -> list[Difference]:
    """Replay a recorded run; returns the difference of every AR iteration and of the latents."""
    family = pipe.plan.manifest.family
    if reference.option("family") != family:
        raise DisaError(
            f"{reference.path}: it is a run of {reference.option('family')}, but {pipe.plan.path} "
            f"is a {family} plan"
        )
    labels = reference.integers("labels", 1)
    if not 0 < len(labels) <= MAX_IMAGES:
        raise DisaError(f"{reference.path}: its labels are not a list of 1 to {MAX_IMAGES} classes")
    conditions = pipe.conditions(labels.tolist())
    options = recorded_options(reference, pipe.family.Options)
    return replayed(pipe, conditions, options, FlowReplay(reference, len(labels)), reference)


def recorded_options(reference: RecordedRun, kind: type[FlowOptions]) -> FlowOptions:
    """The sampling options of a recorded run, as `kind`."""
    try:
        recorded: dict[str, Any] = {
            "schedule": AnnealedSchedule(
                int(reference.option("upper")), int(reference.option("lower"))
            ),
            "guidance_scale": float(reference.option("cfg")),
        }
        if "guidance" in reference.meta:
            recorded["guidance_interval"] = float(reference.meta["guidance"])
        return kind(**recorded)
    except (TypeError, ValueError) as error:
        raise DisaError(f"{reference.path}: its options are not usable: {error}") from error
