"""Recorded runs of FlowAR and xAR, to be replayed through a plan."""

import numpy as np
import numpy.typing as npt

from ..errors import DisaError
from .flow import FlowSettings
from .head import Iteration
from .pipeline import Pipeline
from .reference import Difference, Reference, difference
from .schedule import AnnealedSchedule
from .stats import Stats

Floats = npt.NDArray[np.float32]


class FlowReplay:
    """The recorded randomness of a flow-matching model, as a noise source.

    Recorded arrays are [rows, tokens, C]; with guidance FlowAR records unconditional rows
    after the conditional ones, and nothing of their noise reaches the result.
    """

    def __init__(self, reference: Reference, images: int) -> None:
        self._reference, self._images = reference, images

    def order(self, tokens: int) -> npt.NDArray[np.int64]:
        """These families have one order."""
        return np.repeat(np.arange(tokens)[:, None], self._images, axis=1)

    def gaussian(self, iteration: int, draws: int, shape: tuple[int, ...]) -> Floats:
        """The recorded draws of an AR iteration, [draws, tokens, batch, C]."""
        first = self._reference.recorded(iteration, "draw", "initial_draw")
        more = "step_draws" in self._reference.steps[iteration]
        recorded = 1 + (self._reference.recorded(iteration, "step_draws") if more else 0)
        if recorded != draws:
            raise DisaError(
                f"{self._reference.path}: iteration {iteration} has {recorded} draws, and the "
                f"options it names mean {draws}"
            )
        return np.stack([self._rows(f"draw_{first + i:04d}", shape) for i in range(draws)])

    def compare(self, iteration: Iteration) -> Difference:
        """The tokens of an AR iteration against the recorded ones."""
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
                f"{self._reference.path}: {name} has shape {array.shape}, and at least "
                f"{(batch, tokens, *rest)} is needed"
            )
        return array[:batch].swapaxes(0, 1).astype(np.float32)


def replay_flow(pipe: Pipeline, reference: Reference) -> list[Difference]:
    """Draw a recorded run again: the difference of every AR iteration and of the latents."""
    family = pipe.plan.manifest.family
    if reference.option("family") != family:
        raise DisaError(
            f"{reference.path}: it is a run of {reference.option('family')}, and {pipe.plan.path} "
            f"is a {family} plan"
        )
    labels = reference["labels"]
    if labels.ndim != 1 or len(labels) == 0 or labels.dtype.kind != "i":
        raise DisaError(f"{reference.path}: its labels are not a list of classes")
    replay = FlowReplay(reference, len(labels))
    found: list[Difference] = []
    _, latents = pipe.draw(
        pipe.conditions(labels.tolist()),
        recorded_settings(reference),
        replay,
        Stats(),
        lambda done: found.append(replay.compare(done)),
    )
    return [*found, Difference("latents", None, difference(latents, reference["latents"]))]


def recorded_settings(reference: Reference) -> FlowSettings:
    """The sampling options of a recorded run."""
    try:
        return FlowSettings(
            schedule=AnnealedSchedule(
                int(reference.option("upper")), int(reference.option("lower"))
            ),
            guidance_scale=float(reference.option("cfg")),
            guidance_interval=float(reference.meta.get("guidance", 1.0)),
        )
    except (TypeError, ValueError) as error:
        raise DisaError(f"{reference.path}: its options are not usable: {error}") from error
