"""FlowAR's token loop: scale after scale, each denoised by the flow head."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from .flow import FlowSettings, FlowTable, euler_table
from .head import Floats, Iteration
from .masked import Watcher
from .noise import NoiseSource
from .sampler import StepTable
from .stats import Stats


class FlowARLoop:
    """Draws the tokens of a batch of images.

    Args:
        sessions: the plan's graphs by name.
        scales: side of the token grid in each AR step.
        channels: channels of a token, C.
        classes: number of classes; this index stands for no class.
    """

    def __init__(
        self, sessions: Mapping[str, Session], scales: Sequence[int], channels: int, classes: int
    ) -> None:
        self._modulation, self._backbone = sessions["modulation"], sessions["backbone"]
        self._head = FlowHead(sessions)
        self.scales, self.channels, self.classes = tuple(scales), channels, classes

    def generate(
        self,
        labels: npt.NDArray[np.int64],
        settings: FlowSettings,
        noise: NoiseSource,
        stats: Stats,
        watch: Watcher | None = None,
    ) -> Array:
        """Draw one image for each label.

        Args:
            labels: class of each image, [batch]; `classes` for no class.
            watch: called after each scale.

        Returns:
            Tokens of the last scale, row-major, [256, batch, C].
        """
        batch = len(labels)
        class_index = guidance_rows(labels, self.classes, settings.guided)
        with stats.timed("backbone"):
            modulation = self._modulation.run({"class_index": class_index})["modulation"]
        sizes = {"guidance": len(class_index), "batch": batch, "past": 0}
        caches = empty_caches(self._backbone, sizes)
        sampled: Array = np.zeros((1, batch, self.channels), np.float32)
        start = 0
        for index, side in enumerate(self.scales):
            tokens = side * side
            positions = np.arange(start, start + tokens)
            table = euler_table(settings.schedule.steps(index, len(self.scales)))
            scale = settings.guidance(index, len(self.scales))
            with stats.timed("noise"):
                first = noise.gaussian(index, 1, (tokens, batch, self.channels))[0]
            with stats.timed("backbone"):
                outputs = self._backbone.run(
                    {
                        "previous": sampled,
                        "positions": positions,
                        "class_index": class_index,
                        "modulation": modulation,
                        **caches,
                    }
                )
            caches = {name: outputs.pop(f"next_{name}") for name in caches}
            with stats.timed("head"):
                sampled = self._head.sample(
                    table, outputs, positions, scale, settings.guidance_interval, first, stats
                )
            start += tokens
            if watch:
                rows = sampled.reshape(tokens * batch, self.channels)
                predicted = np.repeat(np.arange(tokens)[:, None], batch, axis=1)
                again = partial(self._again, outputs, positions, scale, settings.guidance_interval)
                watch(
                    Iteration(
                        index,
                        table,
                        scale,
                        predicted,
                        outputs["condition"],
                        rows,
                        euler_table,
                        again,
                    )
                )
        return sampled

    def _again(
        self,
        condition: Mapping[str, Array],
        positions: npt.NDArray[np.int64],
        scale: float,
        interval: float,
        table: StepTable,
        noise: Floats,
    ) -> Array:
        assert isinstance(table, FlowTable)
        first = noise[0].reshape(len(positions), -1, self.channels)
        sampled = self._head.sample(table, condition, positions, scale, interval, first, Stats())
        return sampled.reshape(-1, self.channels)


class FlowHead:
    """The head and timestep graphs of a plan.

    What the blocks need of the timesteps is computed once for each grid and kept.
    """

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._session, self._timestep = sessions["head"], sessions["timestep"]
        self._tables: dict[bytes, dict[str, Array]] = {}

    def sample(
        self,
        table: FlowTable,
        condition: Mapping[str, Array],
        positions: npt.NDArray[np.int64],
        guidance_scale: float,
        guidance_interval: float,
        noise: Array,
        stats: Stats,
    ) -> Array:
        """Denoise the tokens of a scale.

        Steps before the guidance interval run without the unconditional half, since nothing
        of it reaches the result.

        Args:
            condition: what the backbone gave for the head, each [guidance, ...].
            positions: places of the tokens among those of all scales, [tokens].
            noise: where denoising starts, [tokens, batch, C].

        Returns:
            The sampled tokens, [tokens, batch, C].
        """
        tokens, batch = noise.shape[:2]
        steps = np.repeat(np.arange(len(table))[:, None], batch, axis=1)
        free = len(table)
        if guidance_scale > 1:
            free = int(np.sum(table.times > guidance_interval))
        conditional = {name: array[0:1] for name, array in condition.items()}
        x: Array = noise
        for part, given in ((steps[:free], conditional), (steps[free:], condition)):
            x = self._session.iterate(
                carry={"next_x": "x"},
                constants={
                    **given,
                    **self._embedded(table),
                    "positions": positions,
                    "coefficients": table.coefficients,
                    "guidance_scale": np.full(batch, guidance_scale, np.float32),
                },
                per_step={"step": part},
                state={"x": x},
            )["next_x"]
        stats.head_calls += len(table)
        stats.head_rows += len(table) * tokens * batch
        return x

    def _embedded(self, table: FlowTable) -> dict[str, Array]:
        key = table.timesteps.tobytes()
        if key not in self._tables:
            self._tables[key] = self._timestep.run({"timestep": table.timesteps})
        return self._tables[key]


def guidance_rows(
    labels: npt.NDArray[np.int64], classes: int, guided: bool
) -> npt.NDArray[np.int64]:
    """Class of each image [guidance, batch]: as given, and none where guidance needs it."""
    return np.stack([labels, np.full_like(labels, classes)]) if guided else labels[None]


def empty_caches(session: Session, sizes: Mapping[str, int]) -> dict[str, Array]:
    """A cache of no tokens for every input of the session that is one."""
    return {
        spec.name: session.empty(
            tuple(sizes[dim] if isinstance(dim, str) else dim for dim in spec.shape), np.float32
        )
        for spec in session.inputs
        if spec.name.endswith("_cache")
    }
