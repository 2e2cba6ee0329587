"""xAR's token loop: cluster after cluster, each denoised by the whole transformer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from .adaptive import denoise, take
from .flow import FlowSettings, FlowTable, euler_maruyama_steps, euler_maruyama_table
from .flowar import Ints, batch_axes, empty_caches, guidance_rows
from .head import Floats, Iteration
from .masked import Watcher
from .noise import NoiseSource
from .sampler import StepTable
from .stats import Stats


class XARLoop:
    """Draws the tokens of a batch of images.

    Args:
        sessions: the plan's graphs by name.
        clusters: clusters of an image.
        tokens: tokens of an image, L.
        channels: channels of a token, C.
        classes: number of classes; this index stands for no class.
        rows: for how many pairs of a timestep and a class modulations are computed at once.
    """

    def __init__(
        self,
        sessions: Mapping[str, Session],
        clusters: int,
        tokens: int,
        channels: int,
        classes: int,
        rows: int = 1024,
    ) -> None:
        self._prefill, self._head_session = sessions["prefill"], sessions["head"]
        self._head = ClusterHead(sessions, rows)
        self.clusters, self.tokens = clusters, tokens
        self.channels, self.classes = channels, classes

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
            watch: called after each cluster.

        Returns:
            Tokens in generation order, quadrant by quadrant, [256, batch, C].
        """
        batch, count = len(labels), self.tokens // self.clusters
        tokens = self._head_session.empty((self.tokens, batch, self.channels), np.float32)
        caches: dict[str, Array] = {}
        for index in range(self.clusters):
            start = index * count
            # The first cluster is not guided, and its tokens enter the cache only later.
            guided = settings.guided and index > 0
            class_index = guidance_rows(labels, self.classes, guided)
            sizes = {"guidance": len(class_index), "batch": batch, "past": 0}
            if index < 2:
                caches = empty_caches(self._head_session, sizes)
            with stats.timed("backbone"):
                if index:
                    caches = self._extended(
                        caches, tokens[start - count : start], start, class_index
                    )
            table = euler_maruyama_table(settings.schedule.steps(index, self.clusters))
            scale = settings.guidance(index, self.clusters)
            with stats.timed("noise"):
                draws = noise.gaussian(index, len(table), (count, batch, self.channels))
            again = partial(self._denoised, caches, start, class_index, scale)
            with stats.timed("head"):
                rows = draws.reshape(len(table), count * batch, self.channels)
                sampled = again(table, rows, settings.tolerance, stats)
            tokens[start : start + count] = sampled.reshape(count, batch, self.channels)
            if watch:
                predicted = np.repeat(np.arange(start, start + count)[:, None], batch, axis=1)
                watch(
                    Iteration(
                        index,
                        table,
                        scale,
                        predicted,
                        class_index,
                        sampled,
                        euler_maruyama_table,
                        again,
                    )
                )
        return tokens

    def _denoised(
        self,
        caches: Mapping[str, Array],
        start: int,
        class_index: Ints,
        scale: float,
        table: StepTable,
        noise: Floats,
        tolerance: float = 0.0,
        stats: Stats | None = None,
    ) -> Array:
        """The tokens of a cluster, [tokens * batch, C]; its last step takes no noise."""
        draws = noise[: len(table)].reshape(len(table), -1, class_index.shape[1], self.channels)
        positions = np.arange(start, start + draws.shape[1])
        images = Images(
            self._head, caches, positions, class_index, scale, draws[1:], stats or Stats()
        )
        return denoise(images, table, tolerance, draws[0]).reshape(-1, self.channels)

    def _extended(
        self, caches: Mapping[str, Array], previous: Array, start: int, class_index: Ints
    ) -> dict[str, Array]:
        """The caches with the finished cluster `previous`, which ends at `start`."""
        modulation = self._head.modulations(np.zeros((1, class_index.shape[1])), class_index)
        outputs = self._prefill.run(
            {
                "tokens": previous,
                "positions": np.arange(start - len(previous), start),
                "modulation": modulation.reshape(modulation.shape[1:]),
                **caches,
            }
        )
        return {name: outputs[f"next_{name}"] for name in caches}


@dataclass(frozen=True)
class Images:
    """The images of a cluster, each of which can leave the batch.

    Attributes:
        caches: keys and values of the clusters before.
        positions: places of the tokens in generation order, [tokens].
        class_index: [guidance, batch].
        step_noise: of each step but the last, [steps - 1, tokens, batch, C].
        stats: where the head's calls are counted.
    """

    head: "ClusterHead"
    caches: Mapping[str, Array]
    positions: Ints
    class_index: Ints
    guidance_scale: float
    step_noise: Floats
    stats: Stats

    @property
    def items(self) -> int:
        return self.class_index.shape[1]

    def walk(self, table: StepTable, step: Ints, draw: int, x: Array) -> Array:
        assert isinstance(table, FlowTable)
        noise = self.step_noise[draw : draw + len(step)]
        if len(noise) < len(step):
            # The last step adds no noise, whatever stands there.
            noise = np.concatenate([noise, np.zeros((1, *noise.shape[1:]), np.float32)])
        constants = {
            **self.caches,
            "positions": self.positions,
            "coefficients": table.coefficients,
            "guidance_scale": np.full(self.items, self.guidance_scale, np.float32),
        }
        self.stats.head_calls += len(step)
        self.stats.head_rows += step.size * len(self.positions)
        return self.head.walk(table, step, self.class_index, constants, noise, x)

    def noise(self, draw: int) -> Floats:
        return self.step_noise[draw]

    def taken(self, items: Ints) -> "Images":
        axes = self.head.batch_axes
        return replace(
            self,
            caches={name: take(cache, items, axes[name]) for name, cache in self.caches.items()},
            class_index=take(self.class_index, items, 1),
            step_noise=take(self.step_noise, items, 2),
        )

    def thinned(self, table: StepTable, kept: Ints) -> StepTable:
        assert isinstance(table, FlowTable)
        return euler_maruyama_steps(table.times[kept])


class ClusterHead:
    """The head and timestep graphs of a plan.

    Args:
        rows: for how many pairs of a timestep and a class modulations are computed at once.
    """

    def __init__(self, sessions: Mapping[str, Session], rows: int) -> None:
        self._session, self._timestep = sessions["head"], sessions["timestep"]
        self.rows = rows
        self.batch_axes = batch_axes(self._session)

    def walk(
        self,
        table: FlowTable,
        step: Ints,
        class_index: Ints,
        constants: Mapping[str, Array],
        noise: Floats,
        x: Array,
    ) -> Array:
        """Take every image through steps of its own.

        Args:
            table: the steps of all images.
            step: where in the table each image is, [steps, batch].
            class_index: [guidance, batch].
            constants: what else the head graph is given.
            noise: for each step, [steps, tokens, batch, C].
            x: the tokens now, [tokens, batch, C].

        Returns:
            The tokens after the steps, [tokens, batch, C].
        """
        at_once = max(1, self.rows // class_index.size)
        for first in range(0, len(step), at_once):
            part = slice(first, first + at_once)
            x = self._session.iterate(
                carry={"next_x": "x"},
                constants=constants,
                per_step={
                    "step": step[part],
                    "noise": noise[part],
                    "modulation": self.modulations(table.timesteps[step[part]], class_index),
                },
                state={"x": x},
            )["next_x"]
        return x

    def modulations(self, timesteps: npt.NDArray[np.floating], class_index: Ints) -> Array:
        """What class and time do to every block, [steps, guidance, batch, modulations].

        Args:
            timesteps: of each image, [steps, batch].
            class_index: [guidance, batch].
        """
        shape = (len(timesteps), *class_index.shape)
        outputs = self._timestep.run(
            {
                "timestep": np.broadcast_to(timesteps[:, None], shape)
                .reshape(-1)
                .astype(np.float32),
                "class_index": np.broadcast_to(class_index, shape).reshape(-1),
            }
        )
        return outputs["modulation"].reshape(*shape, -1)
