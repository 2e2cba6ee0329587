"""FlowAR: generates scale after scale, each denoised by a flow head."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ....engines.array_types import Doubles, Floats, Ints
from ....engines.plan.plan import Plan
from ....engines.session import Array, Session
from ....recent import Recent
from ...generation import Request, Watcher
from ...sampling.denoise import Steps, denoise, take
from ...sampling.flow import FlowTable, euler_steps, euler_table
from ...sampling.head import MAX_EMBEDDED, Iteration
from ...sampling.noise import noise_of
from ...sampling.sampler import StepTable
from ...stats import Stats
from ..cohort import Cohort, Group, Member, group_by, seated
from ..counts import read_count, read_counts
from ..family import ClassConditioned, Decoded, Sessions, StepPlans
from ..options import Limits, about
from ..signatures import Signature
from .caches import batch_axes, empty_caches
from .options import FlowOptions
from .sampled import Sampled, count_cost, like_columns


@dataclass(frozen=True, kw_only=True)
class FlowAROptions(FlowOptions):
    """Sampling options of FlowAR."""

    ADAPTIVE_TOLERANCE: ClassVar[float] = 0.01

    guidance_interval: float = field(
        default=1.0,
        metadata=about(
            float,
            "Largest flow time (0 is no noise, 1 is pure noise) at which steps are guided (arXiv "
            "2404.07724); 1 guides all steps.",
            limits=Limits(0, 1),
        ),
    )


class FlowARFamily(ClassConditioned[Member]):
    """A loaded FlowAR model. See `generation.Family`."""

    Options = FlowAROptions

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        super().__init__(plan, sessions)
        self.scales = read_counts(plan, "tokens", "scales")
        self._modulation, self._backbone = self.session("modulation"), self.session("backbone")
        self._head = FlowHead(self.session("head"), self.session("timestep"))
        self._decoder = self.session("decoder")
        axes = batch_axes(self._backbone)
        self._axes = {"sampled": 1, "modulation": axes["modulation"]} | {
            name: axis for name, axis in axes.items() if name.endswith("_cache")
        }

    @staticmethod
    def signature(plan: Plan) -> Signature:
        """See `BaseFamily`."""
        length, channels = (read_count(plan, "tokens", name) for name in ("count", "channels"))
        return {
            "backbone": {"previous": ("previous", "batch", channels)},
            "head": {"x": ("tokens", "batch", channels)},
            "decoder": {"tokens": (length, "batch", channels)},
        }

    def iterations(self, options: FlowAROptions) -> int:
        """See `generation.Family`: the number of scales."""
        del options
        return len(self.scales)

    def start(self, requests: Sequence[Request], stats: Stats) -> list[Member]:
        """See `generation.Family`."""
        samples = [Member(request, len(self.scales)) for request in requests]
        for members in group_by(samples, self.key):
            guided = members[0].request.options.guided
            index = self.class_index(members, guided)
            with stats.timed("backbone"):
                modulation = self._modulation.run({"class_index": index})["modulation"]
            sizes = {"guidance": len(index), "batch": len(members), "past": 0}
            arrays: dict[str, Array] = {
                "sampled": np.zeros((1, len(members), self.channels), np.float32),
                "modulation": modulation,
                **empty_caches(self._backbone, sizes),
            }
            cohort = Cohort(len(members), arrays, self._axes)
            seated(members, cohort)
            cohort.constants = {"class_index": index}
        return samples

    def key(self, sample: Member) -> Hashable:
        """See `generation.Family`."""
        return sample.iteration, sample.request.options.guided

    @property
    def _home(self) -> Session:
        return self._backbone

    def _constants(self, samples: Sequence[Member]) -> dict[str, Any]:
        return {"class_index": self.class_index(samples, samples[0].request.options.guided)}

    def _advance(
        self, groups: Sequence[Group[Member]], stats: Stats, watch: Watcher | None
    ) -> None:
        sampled = [self._sample(group, stats, watch) for group in groups]
        for each in sampled:
            each.group.cohort.arrays |= {**each.caches, "sampled": each.tokens}
            for sample, steps in zip(each.group.samples, each.steps.tolist(), strict=True):
                count_cost(sample, steps, len(each.tokens))
                sample.iteration += 1

    def _sample(self, group: Group[Member], stats: Stats, watch: Watcher | None) -> Sampled:
        """Sample the next scale of a group."""
        index, samples = group.samples[0].iteration, group.samples
        side = self.scales[index]
        start = sum(each * each for each in self.scales[:index])
        positions = np.arange(start, start + side * side)
        options = [sample.request.options for sample in samples]
        counts = [each.steps_of(index, len(self.scales)) for each in options]
        tables = [euler_table(count) for count in counts]
        plans = StepPlans()
        images = ScaleImages(
            self._head,
            self._condition(group, positions, stats),
            positions,
            np.array([each.guidance(index, len(self.scales)) for each in options], np.float32),
            np.array([each.guidance_interval for each in options]),
            stats,
        )
        plan_of = [
            plans.index(
                (id(table), each.tolerance, float(scale) > 1 and each.guidance_interval),
                Steps(table, each.tolerance or 0.0, images.subsample_of(column)),
            )
            for column, (table, each, scale) in enumerate(
                zip(tables, options, images.guidance_scale, strict=True)
            )
        ]
        with stats.timed("noise"):
            noises = [sample.request.noise for sample in samples]
            first = noise_of(noises, index, 1, (side * side, self.channels))[0]
        with stats.timed("head"):
            tokens, steps = denoise(images, plans.plans, np.array(plan_of), first)
        if watch:
            for columns in like_columns(group, tables):
                table = tables[columns[0]]
                watch(images.iteration(index, table, np.array(columns), tokens))
        return Sampled(group, tokens, steps, images.caches)

    def _condition(self, group: Group[Member], positions: Ints, stats: Stats) -> dict[str, Array]:
        """The backbone's outputs for a scale: the head's conditions, and the next caches."""
        arrays = dict(group.cohort.arrays)
        previous = arrays.pop("sampled")
        with stats.timed("backbone"):
            return self._backbone.run(
                {
                    "previous": previous,
                    "positions": positions,
                    **group.cohort.constants,
                    **arrays,
                }
            )

    def _decode(self, samples: Sequence[Member]) -> Decoded:
        found: Decoded = []
        for members in group_by(samples, lambda sample: (id(sample.cohort), sample.iteration)):
            columns = np.array([sample.column for sample in members])
            tokens = take(members[0].cohort.arrays["sampled"], columns, 1)
            if not members[0].done:
                side = self.scales[members[0].iteration - 1] if members[0].iteration else 1
                tokens = enlarged(np.asarray(tokens), side, self.scales[-1])
            found.append((members, self._decoder.run({"tokens": tokens})))
        return found


def enlarged(tokens: Floats, side: int, target: int) -> Floats:
    """Tokens of a grid [side * side, batch, C] repeated to a larger one, [target * target, ...]."""
    nearest = np.arange(target) * side // target
    grid = tokens.reshape(side, side, *tokens.shape[1:])
    larger: Floats = grid[nearest][:, nearest].reshape(target * target, *tokens.shape[1:])
    return larger


@dataclass(frozen=True)
class ScaleImages:
    """The images of a scale, each of which can leave; see `denoise.Denoiser`.

    Attributes:
        outputs: of the backbone: conditions, each [guidance, ..., batch, ...], and caches.
        positions: positions of the tokens in the sequence of all scales, [tokens].
        guidance_scale: of each image, [batch].
        guidance_interval: latest time at which each image is guided, [batch].
        stats: counts the head's calls.
    """

    head: "FlowHead"
    outputs: Mapping[str, Array]
    positions: Ints
    guidance_scale: Floats
    guidance_interval: Doubles
    stats: Stats

    @property
    def items(self) -> int:
        return len(self.guidance_scale)

    @property
    def condition(self) -> dict[str, Array]:
        """The inputs of the head."""
        return {n: array for n, array in self.outputs.items() if not n.endswith("_cache")}

    @property
    def caches(self) -> dict[str, Array]:
        """The caches for the backbone at the next scale."""
        return {
            name.removeprefix("next_"): array
            for name, array in self.outputs.items()
            if name.endswith("_cache")
        }

    def run_steps(self, table: StepTable, step: Ints, drawn: Ints, x: Array) -> Array:
        """See `Denoiser`.

        As long as no image has reached its guidance interval, the unconditional half is not
        computed, since it has no effect on the result. An image that has not reached its interval,
        together with others that have, is guided with a scale of 1.
        """
        del drawn
        assert isinstance(table, FlowTable)
        guided = (self.guidance_scale > 1) & (table.times[step] <= self.guidance_interval)
        free = int(np.sum(~guided.any(axis=1)))
        scale = np.where(guided, self.guidance_scale, np.float32(1))
        conditional = {name: array[0:1] for name, array in self.condition.items()}
        for part, given in ((slice(0, free), conditional), (slice(free, None), self.condition)):
            x = self.head.session.iterate(
                carry={"next_x": "x"},
                constants={
                    **given,
                    **self.head.embedded(table),
                    "positions": self.positions,
                    "coefficients": table.coefficients,
                },
                per_step={"step": step[part], "guidance_scale": scale[part]},
                state={"x": x},
            )["next_x"]
        self.stats.head_calls += len(step)
        self.stats.head_rows += step.size * len(self.positions)
        return x

    def noise(self, draw: int) -> None:
        """Euler steps add no noise."""

    def select(self, items: Ints) -> "ScaleImages":
        axes = self.head.batch_axes
        chosen = {name: take(part, items, axes[name]) for name, part in self.condition.items()}
        return replace(
            self,
            outputs=chosen,
            guidance_scale=self.guidance_scale[items],
            guidance_interval=self.guidance_interval[items],
        )

    def subsample_of(self, image: int) -> Any:
        """The rule for skipping steps of an image: the first guided step, where the velocity
        jumps, is always run."""
        guided = self.guidance_scale[image] > 1
        interval = float(self.guidance_interval[image])
        return partial(euler_subsample, interval if guided else None)

    def iteration(self, index: int, table: StepTable, columns: Ints, tokens: Array) -> Iteration:
        """The iteration of some images with equal options, for observers."""
        mine = self.select(columns)
        places = np.repeat(np.arange(len(self.positions))[:, None], len(columns), axis=1)
        sampled = take(tokens, columns, 1)
        return Iteration(
            index,
            table,
            float(mine.guidance_scale[0]),
            places,
            mine.outputs["condition"],
            sampled.reshape(-1, sampled.shape[-1]),
            euler_table,
            mine.denoise_again,
        )

    def denoise_again(
        self,
        table: StepTable,
        noise: Floats,
        tolerance: float = 0.0,
        stats: Stats | None = None,
    ) -> Array:
        """See `sampling.head.Again`; only the first noise array is used."""
        again = replace(self, stats=stats or Stats())
        start = noise[0].reshape(len(self.positions), self.items, -1)
        steps = Steps(table, tolerance, self.subsample_of(0))
        everyone = np.zeros(self.items, np.int64)
        x, _ = denoise(again, [steps], everyone, start)
        return x.reshape(-1, x.shape[-1])


def euler_subsample(interval: float | None, table: StepTable, kept: Ints) -> StepTable:
    """The Euler steps at the indices `kept`, and the first one inside the guidance interval."""
    assert isinstance(table, FlowTable)
    if interval is not None:
        kept = np.union1d(kept, np.flatnonzero(table.times <= interval)[:1])
    return euler_steps(table.times[kept])


class FlowHead:
    """The head and timestep graphs of a plan.

    Values that depend only on the timesteps are computed once for each grid and cached.
    """

    def __init__(self, head: Session, timestep: Session) -> None:
        self.session, self._timestep = head, timestep
        self._tables: Recent[dict[str, Array]] = Recent(
            MAX_EMBEDDED, weigh=lambda embedded: len(next(iter(embedded.values())))
        )
        self.batch_axes = batch_axes(head)

    def embedded(self, table: FlowTable) -> dict[str, Array]:
        """The head's inputs for the timesteps of a table."""
        key = table.timesteps.tobytes()
        return self._tables.get(key, lambda: self._timestep.run({"timestep": table.timesteps}))
