"""FlowAR's token loop: scale after scale, each denoised by the flow head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from .adaptive import denoise, take
from .flow import FlowSettings, FlowTable, euler_steps, euler_table
from .head import Floats, Iteration
from .masked import Watcher
from .noise import NoiseSource
from .sampler import StepTable
from .stats import Stats

Ints = npt.NDArray[np.int64]


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
        labels: Ints,
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
            again = partial(self._denoised, outputs, positions, scale, settings)
            with stats.timed("head"):
                sampled = again(
                    table, first.reshape(1, -1, self.channels), settings.tolerance, stats
                )
            start += tokens
            if watch:
                predicted = np.repeat(np.arange(tokens)[:, None], batch, axis=1)
                watch(
                    Iteration(
                        index,
                        table,
                        scale,
                        predicted,
                        outputs["condition"],
                        sampled,
                        euler_table,
                        again,
                    )
                )
            sampled = sampled.reshape(tokens, batch, self.channels)
        return sampled

    def _denoised(
        self,
        condition: Mapping[str, Array],
        positions: Ints,
        scale: float,
        settings: FlowSettings,
        table: StepTable,
        noise: Floats,
        tolerance: float = 0.0,
        stats: Stats | None = None,
    ) -> Array:
        """The tokens of a scale, [tokens * batch, C]; of the noise only the start is used."""
        interval = settings.guidance_interval
        images = Images(self._head, condition, positions, scale, interval, stats or Stats())
        start = noise[0].reshape(len(positions), -1, self.channels)
        return denoise(images, table, tolerance, start).reshape(-1, self.channels)


@dataclass(frozen=True)
class Images:
    """The images of a scale, each of which can leave the batch.

    Attributes:
        condition: what the backbone gave for the head, each [guidance, ..., batch, ...].
        positions: places of the tokens among those of all scales, [tokens].
        stats: where the head's calls are counted.
    """

    head: "FlowHead"
    condition: Mapping[str, Array]
    positions: Ints
    guidance_scale: float
    guidance_interval: float
    stats: Stats

    @property
    def items(self) -> int:
        condition: Array = self.condition["condition"]
        return int(condition.shape[self.head.batch_axes["condition"]])

    def walk(self, table: StepTable, step: Ints, draw: int, x: Array) -> Array:
        del draw
        assert isinstance(table, FlowTable)
        return self.head.walk(
            table,
            step,
            self.condition,
            self.positions,
            self.guidance_scale,
            self.guidance_interval,
            x,
            self.stats,
        )

    def noise(self, draw: int) -> None:
        """Euler steps add none."""

    def taken(self, items: Ints) -> "Images":
        axes = self.head.batch_axes
        condition = {name: take(part, items, axes[name]) for name, part in self.condition.items()}
        return replace(self, condition=condition)

    def thinned(self, table: StepTable, kept: Ints) -> StepTable:
        """The steps `kept`, and the first one that is guided: the velocity jumps there."""
        assert isinstance(table, FlowTable)
        guided = np.flatnonzero(table.times <= self.guidance_interval)[:1]
        if self.guidance_scale > 1:
            kept = np.union1d(kept, guided)
        return euler_steps(table.times[kept])


class FlowHead:
    """The head and timestep graphs of a plan.

    What the blocks need of the timesteps is computed once for each grid and kept.
    """

    def __init__(self, sessions: Mapping[str, Session]) -> None:
        self._session, self._timestep = sessions["head"], sessions["timestep"]
        self._tables: dict[bytes, dict[str, Array]] = {}
        self.batch_axes = batch_axes(self._session)

    def walk(
        self,
        table: FlowTable,
        step: Ints,
        condition: Mapping[str, Array],
        positions: Ints,
        guidance_scale: float,
        guidance_interval: float,
        x: Array,
        stats: Stats,
    ) -> Array:
        """Take every image through steps of its own.

        As long as no image has reached the guidance interval, the unconditional half does not
        run, since nothing of it reaches the result. An image that has not, beside others
        that have, is guided by a scale of 1.

        Args:
            table: the steps of all images.
            step: where in the table each image is, [steps, batch].
            condition: what the backbone gave for the head, each [guidance, ...].
            positions: places of the tokens among those of all scales, [tokens].
            x: the tokens now, [tokens, batch, C].

        Returns:
            The tokens after the steps, [tokens, batch, C].
        """
        guided = (guidance_scale > 1) & (table.times[step] <= guidance_interval)
        free = int(np.sum(~guided.any(axis=1)))
        scale = np.where(guided, guidance_scale, 1.0).astype(np.float32)
        conditional = {name: array[0:1] for name, array in condition.items()}
        for part, given in ((slice(0, free), conditional), (slice(free, None), condition)):
            x = self._session.iterate(
                carry={"next_x": "x"},
                constants={
                    **given,
                    **self._embedded(table),
                    "positions": positions,
                    "coefficients": table.coefficients,
                },
                per_step={"step": step[part], "guidance_scale": scale[part]},
                state={"x": x},
            )["next_x"]
        stats.head_calls += len(step)
        stats.head_rows += step.size * len(positions)
        return x

    def _embedded(self, table: FlowTable) -> dict[str, Array]:
        key = table.timesteps.tobytes()
        if key not in self._tables:
            self._tables[key] = self._timestep.run({"timestep": table.timesteps})
        return self._tables[key]


def guidance_rows(labels: Ints, classes: int, guided: bool) -> Ints:
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


def batch_axes(session: Session) -> dict[str, int]:
    """Which axis of each input of a session is the batch, for those that have one."""
    return {
        spec.name: spec.shape.index("batch") for spec in session.inputs if "batch" in spec.shape
    }
