"""Masked autoregressive generation, shared by MAR and Harmon.

Each image has its own order of tokens. An AR iteration generates several tokens of an image, all
denoised together.
"""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ....engines.array_types import Floats, Ints
from ....engines.plan.plan import Plan
from ....engines.session import Array, Session
from ...generation import Watcher
from ...sampling.adaptive import Subsample
from ...sampling.denoise import Steps, denoise, take
from ...sampling.head import Head, HeadRows, Iteration
from ...sampling.noise import noise_of
from ...sampling.sampler import StepTable
from ...stats import Stats
from ..cohort import Cohort, Group, Member, group_by, seated
from ..family import BaseFamily, Sessions, StepPlans
from ..signatures import Signature
from .caches import check_cached_backbone, reuse_inputs, update_caches
from .options import MaskedOptions


@dataclass(eq=False)
class MaskedSample(Member):
    """An image in progress.

    Attributes:
        counts: number of tokens that each AR iteration predicts.
        order: grid position of every token in generation order, [L].
        known: number of tokens generated so far.
        cached: number of these tokens in the backbone's caches.
        ahead: number of tokens between the known ones and those predicted next; 0 during normal
            generation, see `MaskedFamily.look_ahead`.
    """

    counts: Sequence[int] = ()
    order: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    known: int = 0
    cached: int = 0
    ahead: int = 0

    @property
    def predicted(self) -> slice:
        """The places, in generation order, that the next AR iteration predicts."""
        start = self.known + self.ahead
        return slice(start, start + self.count)

    @property
    def full_pass(self) -> bool | None:
        """Whether the next backbone pass is a full one; None if the backbone is not cached."""
        plan = self.request.options.refresh_plan
        return None if plan is None else plan.is_full(self.iteration)

    @property
    def count(self) -> int:
        """Number of tokens that the next AR iteration predicts; 0 after the last one."""
        return 0 if self.done else self.counts[self.iteration]


S = TypeVar("S", bound=MaskedSample)


@dataclass(frozen=True)
class Prediction:
    """The backbone's result for one group in an AR iteration. Rows are (token, image).

    Attributes:
        condition: [guidance, rows, width].
        rows: the group's rows among all rows that share head calls.
        tables: denoising steps of each image.
        scales: guidance scale of each image.
        caches: outputs of the backbone for its caches; empty if it has none.
    """

    group: Group[Any]
    condition: Array
    rows: slice
    tables: list[StepTable]
    scales: list[float]
    caches: Mapping[str, Array]

    @property
    def known(self) -> int:
        """Number of tokens known before."""
        known: int = self.group.samples[0].known
        return known

    @property
    def count(self) -> int:
        """Number of tokens that are predicted."""
        count: int = self.group.samples[0].count
        return count


class MaskedFamily(BaseFamily[S]):
    """The AR iterations of MAR and Harmon; a subclass adds the condition of the backbone."""

    Options: type[MaskedOptions] = MaskedOptions
    channels: int

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        super().__init__(plan, sessions)
        self._backbone = self.session("backbone")
        self._head = Head(self.session, "modulated_head" in sessions)
        self._decoder = self.session("decoder")

    @staticmethod
    def head_signature(plan: Plan, channels: int) -> Signature:
        """The inputs of the graphs of a denoising step, with modulations inside or given."""
        rows = ("rows", channels)
        names = {"head", *({"modulated_head"} & plan.manifest.graphs.keys())}
        return {name: {"x": rows, "noise": rows} for name in names}

    def options(self, overrides: Mapping[str, Any]) -> Any:
        """See `generation.Family`."""
        options = super().options(overrides)
        if options.refresh is not None:
            check_cached_backbone(self._plan)
        return options

    def iterations(self, options: MaskedOptions) -> int:
        """See `generation.Family`."""
        return options.num_iterations

    def key(self, sample: S) -> Hashable:
        """See `generation.Family`."""
        guided, full = sample.request.options.guided, sample.full_pass
        cached = sample.cached if full is False else 0
        counts = sample.known, sample.ahead, sample.count
        return self._shape(sample), counts, guided, full, cached

    @abstractmethod
    def _shape(self, sample: S) -> Hashable:
        """What else must be equal for samples that share a backbone call."""

    @property
    def _home(self) -> Session:
        return self._backbone

    def _seat(self, samples: Sequence[S]) -> None:
        """Put new samples into cohorts."""
        for members in group_by(samples, self.key):
            length = len(members[0].order)
            tokens = self._backbone.empty((length, len(members), self.channels), np.float32)
            positions = np.stack([sample.order for sample in members], axis=1)
            arrays = {"tokens": tokens, "positions": positions}
            cohort = Cohort(len(members), arrays, {"tokens": 1, "positions": 1})
            cohort.constants = self._constants(seated(members, cohort).samples)

    def _advance(self, groups: Sequence[Group[S]], stats: Stats, watch: Watcher | None) -> None:
        sampled: list[tuple[Prediction, Array, Ints]] = []
        for guided in (True, False):
            share = [g for g in groups if g.samples[0].request.options.guided is guided]
            if share:
                predictions = self._predict(share, stats)
                sampled += self._denoise(predictions, stats, watch)
        for prediction, tokens, _ in sampled:
            known, count = prediction.known, prediction.count
            target = prediction.group.cohort.arrays["tokens"]
            target[known : known + count] = tokens.reshape(count, -1, self.channels)
            if prediction.caches:
                update_caches(prediction.group, prediction.caches, self._home)
        # Nothing below can fail, so that either all samples advance or none.
        for prediction, _, steps in sampled:
            count = prediction.count
            of_token = steps.reshape(count, -1)
            for sample, most, rows in zip(
                prediction.group.samples,
                of_token.max(axis=0).tolist(),
                of_token.sum(axis=0).tolist(),
                strict=True,
            ):
                sample.cost.steps.append(most)
                sample.cost.head_rows += rows
                sample.cached = sample.known
                sample.known += count
                sample.iteration += 1

    def look_ahead(
        self, samples: Sequence[S], known: int, predicted: range, stats: Stats, watch: Watcher
    ) -> None:
        """Predict tokens of samples as if only their first tokens were known. No sample changes.

        Args:
            samples: samples with at least `known` generated tokens.
            known: number of tokens that the backbone gets.
            predicted: places of the predicted tokens in generation order, from `known` on.
            watch: called with the result.
        """
        shortened = [
            replace(
                sample,
                counts=(len(predicted),),
                iteration=0,
                iterations=1,
                known=known,
                ahead=predicted.start - known,
                cached=0,
            )
            for sample in samples
        ]
        for members in group_by(shortened, self.key):
            self._denoise(self._predict([self._together(members)], stats), stats, watch)

    def _predict(self, groups: Sequence[Group[S]], stats: Stats) -> list[Prediction]:
        """Run the backbone for groups that share head calls."""
        predictions, start = [], 0
        for group in groups:
            first = group.samples[0]
            count, length = first.count, len(first.order)
            with stats.timed("backbone"):
                caches = self._run_backbone(group)
            condition = caches.pop("condition")
            rows = slice(start, start + count * group.cohort.size)
            options = [sample.request.options for sample in group.samples]
            tables = [o.table(s.iteration) for o, s in zip(options, group.samples, strict=True)]
            # By the official rule, one token counts as masked even after the last iteration.
            scales = [
                each.guidance(min(first.predicted.stop, length - 1), length) for each in options
            ]
            predictions.append(Prediction(group, condition, rows, tables, scales, caches))
            start = rows.stop
        return predictions

    def _run_backbone(self, group: Group[S]) -> dict[str, Array]:
        """The condition of the tokens predicted next, and the outputs for the caches."""
        first, cohort = group.samples[0], group.cohort
        full = first.full_pass
        if full is False:
            return self.session("reuse").run(reuse_inputs(group, self.session("reuse").inputs))
        positions, known = cohort.arrays["positions"], first.known
        if first.ahead:
            # The graph predicts the tokens after the known ones; the order of all others is free.
            places = np.arange(len(positions))
            positions = positions[np.r_[places[:known], np.roll(places[known:], -first.ahead)]]
        inputs = {
            "tokens": cohort.arrays["tokens"][:known],
            "positions": positions,
            "predicted": positions[known : known + first.count],
            **cohort.constants,
        }
        backbone = self._backbone if full is None else self.session("refresh")
        return dict(backbone.run(inputs))

    def _denoise(
        self, predictions: Sequence[Prediction], stats: Stats, watch: Watcher | None
    ) -> list[tuple[Prediction, Array, Ints]]:
        """Sample the tokens of groups that share head calls.

        Returns:
            For each group, its tokens [rows, C] and the steps of each row.
        """
        plans = StepPlans()
        plan_of = np.concatenate([_per_row(p, self._plans_of(p, plans)) for p in predictions])
        with stats.timed("noise"):
            noise = self._noise(predictions)
        with stats.timed("head"):
            rows = HeadRows(
                self._head,
                _side_by_side([prediction.condition for prediction in predictions]),
                np.concatenate([_per_row(p, p.scales) for p in predictions]).astype(np.float32),
                noise[1:],
                stats,
            )
            sampled, steps = denoise(rows, plans.plans, plan_of, noise[0])
        if watch:
            for prediction in predictions:
                _show(prediction, rows, sampled, watch)
        return [(p, sampled[p.rows], steps[p.rows]) for p in predictions]

    def _plans_of(self, prediction: Prediction, plans: StepPlans) -> list[int]:
        """The steps of each image of a group, as an index into `plans`."""
        found = []
        for sample, table in zip(prediction.group.samples, prediction.tables, strict=True):
            options = sample.request.options
            tolerance = options.tolerance or 0.0
            key = (id(table), tolerance, options.sampler, options.temperature)
            found.append(plans.index(key, Steps(table, tolerance, options.subsample)))
        return found

    def _noise(self, predictions: Sequence[Prediction]) -> Floats:
        """The noise of all rows, [1 + most steps, rows, C]; undefined after a row's own steps."""
        most = 1 + max(len(table) for p in predictions for table in p.tables)
        parts = []
        for prediction in predictions:
            samples, count = prediction.group.samples, prediction.count
            draws = [1 + len(table) for table in prediction.tables]
            if len(set(draws)) == len({sample.iteration for sample in samples}) == 1:
                noises = [sample.request.noise for sample in samples]
                part = noise_of(noises, samples[0].iteration, draws[0], (count, self.channels))
            else:
                part = np.empty((max(draws), count, len(samples), self.channels), np.float32)
                for column, (sample, number) in enumerate(zip(samples, draws, strict=True)):
                    noise = sample.request.noise
                    part[:number, :, column] = noise.gaussian(
                        sample.iteration, number, (count, self.channels)
                    )
            parts.append(part.reshape(len(part), -1, self.channels))
        if len(parts) == 1:
            return parts[0]
        together = np.empty((most, predictions[-1].rows.stop, self.channels), np.float32)
        for prediction, part in zip(predictions, parts, strict=True):
            together[: len(part), prediction.rows] = part
        return together

    def _all_tokens(self, samples: Sequence[S]) -> tuple[Array, Ints]:
        """Tokens in generation order [L, batch, C] and their grid positions [L, batch].

        Unknown tokens are 0, the mean of latents.
        """
        cohort = samples[0].cohort
        seats = [(sample.cohort, sample.column) for sample in samples]
        whole = seats == [(cohort, column) for column in range(cohort.size)]
        if whole and all(sample.done for sample in samples):
            return cohort.arrays["tokens"], cohort.arrays["positions"]
        read = {id(each): np.asarray(each.arrays["tokens"]) for each, _ in seats}
        tokens = np.zeros((len(samples[0].order), len(samples), self.channels), np.float32)
        for index, sample in enumerate(samples):
            tokens[: sample.known, index] = read[id(sample.cohort)][: sample.known, sample.column]
        return tokens, np.stack([sample.order for sample in samples], axis=1)


def _per_row(prediction: Prediction, values: Sequence[float]) -> npt.NDArray[Any]:
    """A value of each image, for each of its rows."""
    return np.tile(np.asarray(values), prediction.count)


def _side_by_side(conditions: Sequence[Array]) -> Array:
    """The conditions of several groups as one, [guidance, rows, width]."""
    if len(conditions) == 1:
        return conditions[0]
    return np.concatenate([np.asarray(condition) for condition in conditions], axis=1)


def _show(prediction: Prediction, rows: HeadRows, sampled: Array, watch: Watcher) -> None:
    """Call a watcher with the results of a group, once for images with equal options."""
    samples, count = prediction.group.samples, prediction.count
    columns_of: dict[Hashable, list[int]] = {}
    for column, sample in enumerate(samples):
        key = (id(prediction.tables[column]), sample.iteration, id(sample.request.options))
        columns_of.setdefault(key, []).append(column)
    batch = len(samples)
    for columns in columns_of.values():
        first = samples[columns[0]]
        chosen = np.add.outer(np.arange(count) * batch, columns).ravel() + prediction.rows.start
        mine = rows.select(chosen)
        watch(
            Iteration(
                first.iteration,
                prediction.tables[columns[0]],
                prediction.scales[columns[0]],
                prediction.group.cohort.arrays["positions"][samples[0].predicted][:, columns],
                mine.condition,
                take(sampled, chosen, 0),
                first.request.options.table_of,
                partial(denoise_again, mine, first.request.options.subsample),
            )
        )


def denoise_again(
    rows: HeadRows,
    subsample: Subsample,
    table: StepTable,
    noise: Floats,
    tolerance: float = 0.0,
    stats: Stats | None = None,
) -> Array:
    """See `sampling.head.Again`."""
    again = replace(rows, step_noise=noise[1:], stats=stats or Stats())
    everyone = np.zeros(rows.items, np.int64)
    return denoise(again, [Steps(table, tolerance, subsample)], everyone, noise[0])[0]
