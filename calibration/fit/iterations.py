"""Fits the number of tokens that each AR iteration predicts, together with its denoising steps.

A schedule has two errors. With too few denoising steps, a token is sampled from a wrong
distribution. The tokens of one AR iteration are sampled independently of each other (see
`measurement.dependence`), so their joint distribution is wrong. The two errors are of different
kinds and are not added: the fit minimises the time under the condition that neither error is larger
than that of the baseline.

The time is that of the backbone, measured in each AR iteration and interpolated over the number of
known tokens, plus that of the head: a constant for each call and a constant for each row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ...engines.array_types import Doubles, Ints
from ..measurement.dependence import Dependence
from ..measurement.isotonic import falling
from ..measurement.tradeoff import TINY, Tradeoff
from .steps import fit_to_cost, fit_to_error

MAX_STARTS = 256
"""Largest number of places at which an AR iteration may begin in the search."""
TIME_PRICES = (0.0, *np.geomspace(1e-4, 10, 16).tolist())
"""Prices of time in the search: dependence error for time, both as shares of the baseline's."""
FINALISTS = 12
"""Number of partitions whose steps are fitted."""


@dataclass(frozen=True)
class TimeModel:
    """Seconds for one image of a batch.

    Attributes:
        backbone: time of one pass, by the number of known tokens, [tokens].
        call: time of one call of the head, independent of its rows.
        row: time of one row in one call of the head.
    """

    backbone: Doubles
    call: float
    row: float

    @classmethod
    def of(cls, tradeoff: Tradeoff, backbone: Doubles) -> "TimeModel":
        """Fit the model to measured seconds.

        Args:
            tradeoff: error and cost of the measured AR iterations.
            backbone: seconds of the backbone pass of each of them, [iterations].
        """
        tokens = tradeoff.tokens
        known = np.cumsum(tokens) - tokens
        # A pass over more tokens does not take less time; if it seems to, that is noise.
        rising = falling(backbone[::-1])[::-1]
        # seconds / rows = call / tokens + row, by least squares, with both at least 0. The division
        # by rows gives few and many steps the same weight.
        target = (tradeoff.seconds / tradeoff.calls).ravel()
        share = np.repeat(1 / tokens, len(tradeoff.counts))
        features = np.stack([share, np.ones_like(share)], axis=1)
        call, row = np.linalg.lstsq(features, target, rcond=None)[0]
        if call < 0 or row < 0:
            call, row = (
                (0.0, target.mean()) if call < 0 else (target @ share / (share @ share), 0.0)
            )
        every = np.interp(np.arange(tokens.sum()), known, rising)
        return cls(np.maximum(every, TINY), float(call), float(row))


@dataclass(frozen=True)
class FittedIterations:
    """A partition of the tokens into AR iterations with their steps, and its errors and costs.

    Attributes:
        tokens, steps: of each AR iteration.
        error: error of the steps, as from `Tradeoff.of`.
        dependence: error of predicting tokens together, weighted in the same way.
        calls: head calls times tokens of an image.
        head_seconds, backbone_seconds: for an image.
        tradeoff: error and cost of every step count in these iterations.
    """

    tokens: list[int]
    steps: list[int]
    error: float
    dependence: float
    calls: float
    head_seconds: float
    backbone_seconds: float
    tradeoff: Tradeoff

    @property
    def seconds(self) -> float:
        """Seconds for an image, without the decoder."""
        return self.head_seconds + self.backbone_seconds

    def to_json(self) -> dict[str, float]:
        """The entries of a schedule file, for an image."""
        return {
            "iterations": len(self.tokens),
            "error": self.error,
            "dependence": self.dependence,
            "calls": self.calls,
            "seconds": self.head_seconds,
            "backbone_seconds": self.backbone_seconds,
        }


class Partitions:
    """Errors and costs of any partition of the tokens into AR iterations, from a measurement.

    Args:
        tradeoff: measured error and cost in the iterations of the baseline.
        backbone: measured seconds of the backbone in each of them, [iterations].
        dependence: measured on the same plan.
    """

    def __init__(self, tradeoff: Tradeoff, backbone: Doubles, dependence: Dependence) -> None:
        self._measured = tradeoff
        self._time = TimeModel.of(tradeoff, backbone)
        self._ends = np.cumsum(tradeoff.tokens)
        self._known = self._ends - tradeoff.tokens
        self._length = int(self._ends[-1])
        # A step count needs the same number of calls in every iteration.
        self._calls = tradeoff.calls[0] / tradeoff.tokens[0]
        every = np.arange(self._length)
        middle = (self._known + self._ends - 1) / 2
        carry = np.exp(np.interp(every, middle, np.log(tradeoff.carry)))
        self.weight = carry / carry.sum()
        lost = dependence.every * self.weight
        self._lost = np.concatenate([np.zeros((self._length, 1)), lost.cumsum(axis=1)], axis=1)

    def describe(self, tokens: Sequence[int], steps: Sequence[int]) -> FittedIterations:
        """The expected errors and costs of a partition with some steps."""
        tradeoff = self.tradeoff(tokens)
        error, calls = tradeoff.of(steps, "calls")
        return FittedIterations(
            list(map(int, tokens)),
            list(steps),
            error,
            self.dependence(tokens),
            calls,
            tradeoff.of(steps, "time")[1],
            self._backbone(tokens),
            tradeoff,
        )

    def _backbone(self, tokens: Sequence[int]) -> float:
        return float(self._time.backbone[np.cumsum(tokens) - tokens].sum())

    def dependence(self, tokens: Sequence[int]) -> float:
        """The error of predicting the tokens of each iteration together."""
        ends = np.cumsum(tokens)
        return float(self._lost[ends - tokens, ends].sum())

    def tradeoff(self, tokens: Sequence[int]) -> Tradeoff:
        """Error and cost of every step count in the iterations of another partition."""
        parts, ends = np.asarray(tokens, np.int64), np.cumsum(tokens)
        known = ends - parts
        error = np.stack(
            [
                np.exp(np.interp(known, self._known, column))
                for column in np.log(self._measured.error).T
            ],
            axis=1,
        )
        summed = np.concatenate([[0.0], np.cumsum(self.weight)])
        rows = self._calls * parts[:, None]
        seconds = self._time.call * self._calls + self._time.row * rows
        carry = (summed[ends] - summed[known]) / parts
        return Tradeoff(self._measured.counts, error, rows, np.maximum(seconds, TINY), parts, carry)

    def fit(self, baseline: Sequence[int], match: str, target: float | None) -> FittedIterations:
        """The partition and steps that take the least time; see the module's description.

        Args:
            baseline: steps of the measured iterations.
            match: "quality" for the least time at the error of the baseline, "cost" for the least
                error at its time.
            target: limit of the error of the steps, instead of the baseline's error.
        """
        before = self.describe(self._measured.tokens.tolist(), baseline)
        found = [before] if target is None or before.error <= target else []
        for tokens in self._finalists(before):
            tradeoff = self.tradeoff(tokens)
            if target is None and match == "cost":
                left = before.seconds - self._backbone(tokens)
                steps = fit_to_cost(tradeoff, left, "time")
            else:
                limit = before.error if target is None else target
                steps = fit_to_error(tradeoff, limit, "time")
            each = self.describe(tokens, steps)
            good = each.error <= (before.error if target is None else target)
            if good and (target is not None or each.seconds <= before.seconds):
                found.append(each)
        if not found:
            most = [int(self._measured.counts[-1])] * len(before.tokens)
            return self.describe(before.tokens, most)
        if target is None and match == "cost":
            return min(found, key=lambda each: each.error)
        return min(found, key=lambda each: each.seconds)

    def _finalists(self, before: FittedIterations) -> list[list[int]]:
        """The fastest partitions whose dependence error is at most the baseline's."""
        usual = fit_to_error(self.tradeoff(before.tokens), before.error, "time")
        timed: dict[tuple[int, ...], float] = {tuple(before.tokens): 0.0}
        for tokens in self._candidates(before, usual):
            if self.dependence(tokens) <= before.dependence * (1 + 1e-9) + TINY:
                timed[tuple(tokens)] = self._rough_time(tokens, usual)
        timed[tuple(before.tokens)] = self._rough_time(before.tokens, usual)
        best = sorted(timed, key=lambda tokens: timed[tokens])[:FINALISTS]
        return [list(tokens) for tokens in {*best, tuple(before.tokens)}]

    def _candidates(self, before: FittedIterations, usual: Sequence[int]) -> Iterator[list[int]]:
        """The best partition for each number of iterations and each price of time.

        They are found exactly, by dynamic programming over the number of tokens that are known when
        an iteration begins.
        """
        starts = self._starts()
        begin, end = np.meshgrid(starts[:-1], starts, indexing="ij")
        possible = end > begin
        lost = np.where(possible, self._lost[begin, end], np.inf)
        time = self._seconds(begin, end, usual)
        scale = max(before.dependence, TINY) / before.seconds
        for price in TIME_PRICES:
            cost = lost + price * scale * time
            # After round k: the least cost from each start to the end in k iterations.
            least = np.full(len(starts), np.inf)
            least[-1] = 0.0
            chosen: list[Ints] = []
            for _ in before.tokens:
                total = cost + least
                chosen.append(total.argmin(axis=1))
                least = np.append(total.min(axis=1), np.inf)
                if np.isfinite(least[0]):
                    yield self._path(starts, chosen)

    def _starts(self) -> Ints:
        """The places where iterations may begin, and the end."""
        if self._length <= MAX_STARTS:
            return np.arange(self._length + 1)
        # All early places are kept, since early iterations predict few tokens.
        spread = np.linspace(0, self._length, MAX_STARTS // 2 + 1)
        early = np.arange(MAX_STARTS // 2)
        return np.unique([*early, *np.round(spread).astype(np.int64), *self._ends])

    @staticmethod
    def _path(starts: Ints, chosen: Sequence[Ints]) -> list[int]:
        place, ends = 0, [0]
        for choice in reversed(chosen):
            place = int(choice[place])
            ends.append(int(starts[place]))
        return np.diff(ends).tolist()

    def _seconds(self, begin: Ints, end: Ints, usual: Sequence[int]) -> Doubles:
        """Seconds of iterations, with the steps `usual` of the measured iterations interpolated."""
        column = np.interp(begin, self._known, usual) - self._measured.counts[0]
        calls = np.interp(column, np.arange(len(self._calls)), self._calls)
        head = calls * (self._time.call + self._time.row * np.maximum(end - begin, 0))
        seconds: Doubles = self._time.backbone[begin] + head
        return seconds

    def _rough_time(self, tokens: Sequence[int], usual: Sequence[int]) -> float:
        ends = np.cumsum(tokens)
        begin: Ints = ends - np.asarray(tokens)
        return float(self._seconds(begin, ends, usual).sum())
