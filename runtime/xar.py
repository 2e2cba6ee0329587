"""xAR's token loop: cluster after cluster, each denoised by the whole transformer."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from ..engines.session import Array, Session
from .flow import FlowSettings, FlowTable, euler_maruyama_table
from .flowar import empty_caches, guidance_rows
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
        self._timestep, self._prefill = sessions["timestep"], sessions["prefill"]
        self._head = sessions["head"]
        self.clusters, self.tokens = clusters, tokens
        self.channels, self.classes, self.rows = channels, classes, rows

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
            watch: called after each cluster.

        Returns:
            Tokens in generation order, quadrant by quadrant, [256, batch, C].
        """
        batch, count = len(labels), self.tokens // self.clusters
        tokens = self._head.empty((self.tokens, batch, self.channels), np.float32)
        caches: dict[str, Array] = {}
        for index in range(self.clusters):
            start = index * count
            # The first cluster is not guided, and its tokens enter the cache only later.
            guided = settings.guided and index > 0
            class_index = guidance_rows(labels, self.classes, guided)
            sizes = {"guidance": len(class_index), "batch": batch, "past": 0}
            if index < 2:
                caches = empty_caches(self._head, sizes)
            with stats.timed("backbone"):
                if index:
                    caches = self._extended(
                        caches, tokens[start - count : start], start, class_index
                    )
            table = euler_maruyama_table(settings.schedule.steps(index, self.clusters))
            scale = settings.guidance(index, self.clusters)
            with stats.timed("noise"):
                draws = noise.gaussian(index, len(table), (count, batch, self.channels))
            with stats.timed("head"):
                sampled = self._denoise(table, caches, start, class_index, scale, draws)
            stats.head_calls += len(table)
            stats.head_rows += len(table) * count * batch
            tokens[start : start + count] = sampled
            if watch:
                rows = sampled.reshape(count * batch, self.channels)
                predicted = np.repeat(np.arange(start, start + count)[:, None], batch, axis=1)
                again = partial(self._again, caches, start, class_index, scale)
                watch(
                    Iteration(
                        index,
                        table,
                        scale,
                        predicted,
                        class_index,
                        rows,
                        euler_maruyama_table,
                        again,
                    )
                )
        return tokens

    def _again(
        self,
        caches: Mapping[str, Array],
        start: int,
        class_index: npt.NDArray[np.int64],
        scale: float,
        table: StepTable,
        noise: Floats,
    ) -> Array:
        assert isinstance(table, FlowTable)
        batch = class_index.shape[1]
        draws = noise[: len(table)].reshape(len(table), -1, batch, self.channels)
        sampled = self._denoise(table, caches, start, class_index, scale, draws)
        return sampled.reshape(-1, self.channels)

    def _extended(
        self,
        caches: Mapping[str, Array],
        previous: Array,
        start: int,
        class_index: npt.NDArray[np.int64],
    ) -> dict[str, Array]:
        """The caches with the finished cluster `previous`, which ends at `start`."""
        modulation = self._modulations(np.zeros(1, np.float32), class_index)
        outputs = self._prefill.run(
            {
                "tokens": previous,
                "positions": np.arange(start - len(previous), start),
                "modulation": modulation.reshape(modulation.shape[1:]),
                **caches,
            }
        )
        return {name: outputs[f"next_{name}"] for name in caches}

    def _denoise(
        self,
        table: FlowTable,
        caches: Mapping[str, Array],
        start: int,
        class_index: npt.NDArray[np.int64],
        guidance_scale: float,
        draws: npt.NDArray[np.float32],
    ) -> Array:
        """Denoise a cluster; `draws` [steps, tokens, batch, C], the first where it starts."""
        steps, count, batch = draws.shape[:3]
        constants = {
            **caches,
            "positions": np.arange(start, start + count),
            "coefficients": table.coefficients,
            "guidance_scale": np.full(batch, guidance_scale, np.float32),
        }
        # The last step adds no noise, whatever stands there.
        step_noise = np.concatenate([draws[1:], np.zeros_like(draws[:1])])
        step_index = np.repeat(np.arange(steps)[:, None], batch, axis=1)
        x: Array = draws[0]
        at_once = max(1, self.rows // class_index.size)
        for first in range(0, steps, at_once):
            part = slice(first, min(first + at_once, steps))
            x = self._head.iterate(
                carry={"next_x": "x"},
                constants=constants,
                per_step={
                    "step": step_index[part],
                    "noise": step_noise[part],
                    "modulation": self._modulations(table.timesteps[part], class_index),
                },
                state={"x": x},
            )["next_x"]
        return x

    def _modulations(
        self, timesteps: npt.NDArray[np.float32], class_index: npt.NDArray[np.int64]
    ) -> Array:
        """What class and time do to every block, [steps, guidance, batch, modulations]."""
        steps, rows = len(timesteps), class_index.size
        outputs = self._timestep.run(
            {
                "timestep": np.repeat(timesteps, rows),
                "class_index": np.tile(class_index.reshape(-1), steps),
            }
        )
        return outputs["modulation"].reshape(steps, *class_index.shape, -1)
