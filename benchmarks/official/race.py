"""A race: contenders compute the same AR iterations in turn, and may go on later."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from disa.bench.report import write_record
from disa.errors import DisaError
from disa.progress import progress_bar
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.families.masked.partition import prediction_counts
from disa.runtime.families.options import SamplingOptions
from disa.runtime.sampling.noise import PhiloxNoise, noise_of
from disa.runtime.sampling.refresh import RefreshPlan

from ..records import Record, moment, new_record
from .contenders import ALL_FULL, Contender, Lap, State, class_labels

Laps = list[dict[str, Any]]
"""`iteration`, and by contender seconds (`backbone`, `cached`, `head`) and the `difference`."""


class Progress:
    """The laps of a race so far, in a file beside its record until it is over.

    Args:
        path: of the record; None keeps the laps in memory only.
        question: what is measured. A file with another question is refused.
    """

    def __init__(self, path: Path | None, question: Mapping[str, Any]) -> None:
        self.laps: Laps = []
        self._question = dict(question)
        self._path = path.with_name(f"{path.stem}.laps.json") if path else None
        if self._path is None or not self._path.exists():
            return
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            same, self.laps = found["question"] == self._question, list(found["laps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DisaError(f"{self._path} is damaged ({error}): delete it") from error
        if not same:
            raise DisaError(f"{self._path} has laps of another race: delete it to start this one")

    def add(self, lap: Mapping[str, Any]) -> None:
        """Keep a lap of all contenders."""
        self.laps.append(dict(lap))
        if self._path:
            write_record({"question": self._question, "laps": self.laps}, self._path)

    def finish(self) -> None:
        """Remove the file."""
        if self._path:
            self._path.unlink(missing_ok=True)


def race(
    contenders: Sequence[Contender],
    options: MaskedOptions,
    tokens: int,
    channels: int,
    batch: int,
    measured: Sequence[int],
    rounds: int = 1,
    progress: Progress | None = None,
) -> Record:
    """Time every contender on the same iterations, as JSON.

    An iteration starts from random tokens, or from those of the one before it where that was
    measured too; their values make no difference to the time.

    Args:
        measured: the AR iterations, in rising order.
        rounds: how often each is measured; medians count.
        progress: laps of an earlier run of this race, which are not measured again.
    """
    record = new_record("official_loop")
    progress = progress or Progress(None, {})
    noises = [PhiloxNoise(0, image) for image in range(batch)]
    known = np.random.default_rng(0).standard_normal((tokens, batch, channels), np.float32)
    left = list(measured) * rounds
    del left[: len(progress.laps)]
    with progress_bar(len(left) + 1, "racing", "iteration") as advance:
        for turn, index in enumerate([*left[-1:], *left]):
            state = state_of(options, index, known, noises, tokens)
            for contender in contenders:
                contender.prepare(state)
            taken = {contender.name: contender.run(state) for contender in contenders}
            advance(1)
            if turn == 0:
                continue  # A warm-up.
            progress.add(compared(index, taken))
            done = len(state.tokens)
            first = taken[contenders[0].name].sampled
            known[done : done + state.count] = first.reshape(state.count, batch, channels)
    steps = [len(options.table(index)) for index in range(options.num_iterations)]
    return finished(record, contenders, progress.laps, options, steps, measured, batch, rounds)


def compared(index: int, taken: Mapping[str, Lap]) -> dict[str, Any]:
    """What an AR iteration took all contenders, as JSON; the first one is the reference."""
    first = next(iter(taken.values())).sampled
    lap = {
        name: {
            "backbone": lap.backbone_seconds,
            "cached": lap.cached_seconds,
            "head": lap.head_seconds,
            "difference": float(np.abs(lap.sampled - first).max() / np.abs(first).max()),
        }
        for name, lap in taken.items()
    }
    return {"iteration": index, **lap}


def finished(
    record: Record,
    contenders: Sequence[Any],
    laps: Laps,
    options: SamplingOptions,
    steps: Sequence[int],
    measured: Sequence[int],
    batch: int,
    rounds: int,
) -> Record:
    """The record of a race with its results.

    Args:
        record: from before the race.
        contenders: each with a `name` and `full_passes`.
        steps: denoising steps of all AR iterations.
    """
    record["machine"]["load_after"] = moment()["load"]
    return record | {
        "batch_size": batch,
        "iterations": len(steps),
        "schedule": str(options.step_schedule),
        "guided": options.guided,
        "measured": list(measured),
        "rounds": rounds,
        "steps": [steps[index] for index in measured],
        "contenders": {
            each.name: result_of(each.name, laps, measured, steps, batch, each.full_passes)
            for each in contenders
        },
    }


def result_of(
    name: str,
    laps: Laps,
    measured: Sequence[int],
    steps: Sequence[int],
    batch: int,
    full_passes: RefreshPlan = ALL_FULL,
) -> dict[str, Any]:
    """What a contender took: medians of each measured iteration, and the whole image."""

    def medians(part: str, indices: Sequence[int]) -> dict[int, float]:
        return {
            index: float(np.median([lap[name][part] for lap in laps if lap["iteration"] == index]))
            for index in indices
        }

    with_cache = {lap["iteration"] for lap in laps if lap[name].get("cached") is not None}
    backbone, head = medians("backbone", measured), medians("head", measured)
    cached = medians("cached", sorted(with_cache))
    step = {index: seconds / steps[index] for index, seconds in head.items()}
    calls = interpolated(backbone, len(steps))
    if cached:
        full = [full_passes.is_full(index) for index in range(len(steps))]
        calls = np.where(full, calls, interpolated(cached, len(steps)))
    in_backbone = float(calls.sum()) / batch
    in_head = float((interpolated(step, len(steps)) * steps).sum()) / batch
    return {
        "backbone_seconds_a_call": list(backbone.values()),
        "head_seconds_a_step": list(step.values()),
        "difference": max(lap[name]["difference"] for lap in laps),
        **({"cached_seconds_a_call": list(cached.values())} if cached else {}),
        "seconds_an_image": in_backbone + in_head,
        "backbone_seconds_an_image": in_backbone,
        "head_seconds_an_image": in_head,
    }


def interpolated(seconds: Mapping[int, float], count: int) -> npt.NDArray[np.float64]:
    """The seconds of each of `count` iterations, from those that were measured, in rising order."""
    return np.interp(np.arange(count), list(seconds), list(seconds.values()))


def state_of(
    options: MaskedOptions,
    index: int,
    known: np.ndarray,
    noises: Sequence[PhiloxNoise],
    tokens: int,
) -> State:
    """The state that AR iteration `index` starts from, given all tokens so far."""
    counts = prediction_counts(tokens, options.num_iterations)
    visible, count = sum(counts[:index]), counts[index]
    table, batch = options.table(index), known.shape[1]
    noise = noise_of(noises, index, 1 + len(table), (count, known.shape[2]))
    return State(
        index=index,
        tokens=known[:visible],
        positions=np.stack([noise.order(tokens) for noise in noises], axis=1),
        count=count,
        labels=np.array(class_labels(batch)),
        table=table,
        scale=options.guidance(min(visible + count, tokens - 1), tokens),
        guided=options.guided,
        noise=noise.reshape(1 + len(table), count * batch, known.shape[2]),
    )
