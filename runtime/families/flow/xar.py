"""xAR: generates one cluster of tokens after the other; the whole transformer denoises each."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engines.array_types import Floats, Ints
from ....engines.plan.plan import Plan
from ....engines.session import Array, Session
from ...generation import Request, Watcher
from ...sampling.denoise import Steps, denoise, noise_of_steps, take
from ...sampling.flow import FlowTable, euler_maruyama_steps, euler_maruyama_table
from ...sampling.head import Iteration
from ...sampling.sampler import StepTable
from ...stats import Stats
from ..cohort import Cohort, Group, Member, group_by, seated
from ..counts import read_count, read_counts
from ..family import ClassConditioned, Decoded, Sessions, StepPlans
from ..signatures import Signature
from .caches import batch_axes, empty_caches
from .options import FlowOptions
from .sampled import Sampled, count_cost, like_columns


class XARFamily(ClassConditioned[Member]):
    """A loaded xAR model. See `generation.Family`.

    Attributes:
        rows: number of pairs of timestep and class whose modulations are computed at once.
    """

    Options = FlowOptions

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        super().__init__(plan, sessions)
        self.clusters = read_count(plan, "tokens", "clusters")
        *_, self.rows = read_counts(plan, "tokens", "dimensions", "rows")
        self._prefill, self._head_session = self.session("prefill"), self.session("head")
        self._head = ClusterHead(self._head_session, self.session("timestep"), self.rows)
        self._decoder = self.session("decoder")
        self._cache_axes = {
            name: axis
            for name, axis in batch_axes(self._head_session).items()
            if name.endswith("_cache")
        }

    @staticmethod
    def signature(plan: Plan) -> Signature:
        """See `BaseFamily`."""
        length, channels, clusters = (
            read_count(plan, "tokens", name) for name in ("count", "channels", "clusters")
        )
        cluster = (length // clusters, "batch", channels)
        return {
            "prefill": {"tokens": cluster},
            "head": {"x": cluster, "noise": cluster},
            "decoder": {"tokens": (length, "batch", channels)},
        }

    def iterations(self, options: FlowOptions) -> int:
        """See `generation.Family`: the number of clusters."""
        del options
        return self.clusters

    def start(self, requests: Sequence[Request], stats: Stats) -> list[Member]:
        """See `generation.Family`."""
        del stats
        samples = [Member(request, self.clusters) for request in requests]
        for members in group_by(samples, self.key):
            shape = (self.tokens, len(members), self.channels)
            arrays = {"tokens": self._head_session.empty(shape, np.float32)}
            seated(members, Cohort(len(members), arrays, {"tokens": 1}))
        return samples

    def key(self, sample: Member) -> Hashable:
        """See `generation.Family`."""
        return sample.iteration, self._guided(sample)

    def _guided(self, sample: Member) -> bool:
        """Whether the next cluster is guided; the first one never is."""
        return bool(sample.request.options.guided and sample.iteration > 0)

    @property
    def _home(self) -> Session:
        return self._head_session

    def _constants(self, samples: Sequence[Member]) -> dict[str, Any]:
        return {}

    def _advance(
        self, groups: Sequence[Group[Member]], stats: Stats, watch: Watcher | None
    ) -> None:
        sampled = [self._sample(group, stats, watch) for group in groups]
        count = self.tokens // self.clusters
        for each in sampled:
            cohort, start = each.group.cohort, each.group.samples[0].iteration * count
            cohort.arrays["tokens"][start : start + count] = each.tokens
            if start:
                cohort.arrays |= each.caches
                cohort.axes = {"tokens": 1, **self._cache_axes}
            for sample, steps in zip(each.group.samples, each.steps.tolist(), strict=True):
                count_cost(sample, steps, count)
                sample.iteration += 1

    def _sample(self, group: Group[Member], stats: Stats, watch: Watcher | None) -> Sampled:
        """Sample the next cluster of a group."""
        index, samples, count = group.samples[0].iteration, group.samples, self._count
        class_index = self.class_index(samples, self._guided(samples[0]))
        with stats.timed("backbone"):
            caches = self._caches(group, class_index)
        options = [sample.request.options for sample in samples]
        tables = [euler_maruyama_table(each.steps_of(index, self.clusters)) for each in options]
        with stats.timed("noise"):
            draws = self._noise(samples, tables)
        images = ClusterImages(
            self._head,
            caches,
            np.arange(index * count, (index + 1) * count),
            class_index,
            np.array([each.guidance(index, self.clusters) for each in options], np.float32),
            draws[1:],
            stats,
        )
        plans = StepPlans()
        plan_of = [
            plans.index(
                (id(table), each.tolerance),
                Steps(table, each.tolerance or 0.0, euler_maruyama_subsample),
            )
            for table, each in zip(tables, options, strict=True)
        ]
        with stats.timed("head"):
            tokens, steps = denoise(images, plans.plans, np.array(plan_of), draws[0])
        if watch:
            for columns in like_columns(group, tables):
                table = tables[columns[0]]
                watch(images.iteration(index, table, np.array(columns), tokens))
        return Sampled(group, tokens, steps, caches)

    @property
    def _count(self) -> int:
        """Tokens of a cluster."""
        count: int = self.tokens // self.clusters
        return count

    def _noise(self, samples: Sequence[Member], tables: Sequence[StepTable]) -> Floats:
        """The noise of a cluster, [1 + most steps, tokens, batch, C]; 0 for the last step."""
        index, shape = samples[0].iteration, (self._count, self.channels)
        most = 1 + max(map(len, tables))
        together = np.zeros((most, shape[0], len(samples), shape[1]), np.float32)
        for column, (sample, table) in enumerate(zip(samples, tables, strict=True)):
            drawn = len(table)
            together[:drawn, :, column] = sample.request.noise.gaussian(index, drawn, shape)
        return together

    def _caches(self, group: Group[Member], class_index: Ints) -> dict[str, Array]:
        """The caches, extended by the cluster that was sampled last."""
        start = group.samples[0].iteration * self._count
        arrays = dict(group.cohort.arrays)
        tokens = arrays.pop("tokens")
        sizes = {"guidance": len(class_index), "batch": class_index.shape[1], "past": 0}
        caches = arrays or empty_caches(self._head_session, sizes)
        if not start:
            return caches
        modulation = self._head.modulations(np.zeros((1, class_index.shape[1])), class_index)
        outputs = self._prefill.run(
            {
                "tokens": tokens[start - self._count : start],
                "positions": np.arange(start - self._count, start),
                "modulation": modulation.reshape(modulation.shape[1:]),
                **caches,
            }
        )
        return {name: outputs[f"next_{name}"] for name in caches}

    def _decode(self, samples: Sequence[Member]) -> Decoded:
        found: Decoded = []
        for members in group_by(samples, lambda sample: id(sample.cohort)):
            columns = np.array([sample.column for sample in members])
            tokens = take(members[0].cohort.arrays["tokens"], columns, 1)
            if not members[0].done:
                # Later clusters are unknown: 0 is the mean of latents.
                tokens = np.array(np.asarray(tokens))
                tokens[members[0].iteration * self._count :] = 0
            found.append((members, self._decoder.run({"tokens": tokens})))
        return found


def euler_maruyama_subsample(table: StepTable, kept: Ints) -> StepTable:
    """The Euler-Maruyama steps with the indices `kept`."""
    assert isinstance(table, FlowTable)
    return euler_maruyama_steps(table.times[kept])


@dataclass(frozen=True)
class ClusterImages:
    """The images of a cluster, each of which can leave; see `denoise.Denoiser`.

    Attributes:
        caches: keys and values of the earlier clusters.
        positions: positions of the tokens in generation order, [tokens].
        class_index: [guidance, batch].
        guidance_scale: of each image, [batch].
        step_noise: noise of each step, 0 for the last one, [steps, tokens, batch, C].
        stats: counts the head's calls.
    """

    head: "ClusterHead"
    caches: Mapping[str, Array]
    positions: Ints
    class_index: Ints
    guidance_scale: Floats
    step_noise: Floats
    stats: Stats

    @property
    def items(self) -> int:
        items: int = self.class_index.shape[1]
        return items

    def run_steps(self, table: StepTable, step: Ints, drawn: Ints, x: Array) -> Array:
        """See `Denoiser`. Modulations are computed for as many steps at once as `rows` allows."""
        assert isinstance(table, FlowTable)
        noise = noise_of_steps(self.step_noise, drawn, len(step))
        at_once = max(1, self.head.rows // self.class_index.size)
        for first in range(0, len(step), at_once):
            part = slice(first, first + at_once)
            x = self.head.session.iterate(
                carry={"next_x": "x"},
                constants={
                    **self.caches,
                    "positions": self.positions,
                    "coefficients": table.coefficients,
                    "guidance_scale": self.guidance_scale,
                },
                per_step={
                    "step": step[part],
                    "noise": noise[part],
                    "modulation": self.head.modulations(
                        table.timesteps[step[part]], self.class_index
                    ),
                },
                state={"x": x},
            )["next_x"]
        self.stats.head_calls += len(step)
        self.stats.head_rows += step.size * len(self.positions)
        return x

    def noise(self, draw: int) -> Floats:
        noise: Floats = self.step_noise[draw]
        return noise

    def select(self, items: Ints) -> "ClusterImages":
        axes = self.head.batch_axes
        return replace(
            self,
            caches={name: take(cache, items, axes[name]) for name, cache in self.caches.items()},
            class_index=take(self.class_index, items, 1),
            guidance_scale=self.guidance_scale[items],
            step_noise=take(self.step_noise, items, 2),
        )

    def iteration(self, index: int, table: StepTable, columns: Ints, tokens: Array) -> Iteration:
        """The iteration of some images with equal options, for observers."""
        mine = self.select(columns)
        sampled = take(tokens, columns, 1)
        return Iteration(
            index,
            table,
            float(mine.guidance_scale[0]),
            np.repeat(self.positions[:, None], len(columns), axis=1),
            mine.class_index,
            sampled.reshape(-1, sampled.shape[-1]),
            euler_maruyama_table,
            mine.denoise_again,
        )

    def denoise_again(
        self,
        table: StepTable,
        noise: Floats,
        tolerance: float = 0.0,
        stats: Stats | None = None,
    ) -> Array:
        """See `sampling.head.Again`; the last step adds no noise."""
        draws = noise[: len(table)].reshape(len(table), len(self.positions), self.items, -1)
        step_noise = np.concatenate([draws[1:], np.zeros_like(draws[:1])])
        again = replace(self, step_noise=step_noise, stats=stats or Stats())
        everyone = np.zeros(self.items, np.int64)
        steps = Steps(table, tolerance, euler_maruyama_subsample)
        x, _ = denoise(again, [steps], everyone, draws[0])
        return x.reshape(-1, x.shape[-1])


class ClusterHead:
    """The head and timestep graphs of a plan.

    Args:
        rows: number of pairs of timestep and class whose modulations are computed at once.
    """

    def __init__(self, head: Session, timestep: Session, rows: int) -> None:
        self.session, self._timestep = head, timestep
        self.rows = rows
        self.batch_axes = batch_axes(head)

    def modulations(self, timesteps: npt.NDArray[np.floating], class_index: Ints) -> Array:
        """The modulations of every block by class and time, [steps, guidance, batch, modulations].

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
