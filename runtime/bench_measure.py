"""Measures variants in turn, round after round, so that a machine's moods hit all alike."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.plan import Plan
from .bench_machine import describe_machine, describe_versions, read_bandwidth
from .bench_variant import Variant
from .bench_work import Work
from .bench_worker import Draw, Worker

FORMAT = 1
NOT_GRAPHS = ("noise", "total")


def measure(
    plan: Path,
    variants: Sequence[Variant],
    *,
    repeat: int,
    warmup: int,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Draw with every variant `warmup` + `repeat` times, and say what it cost, as JSON.

    Raises DisaError if a variant cannot be drawn; nothing is measured by halves.
    """
    start = time.perf_counter()
    record = _preamble(plan, threads)
    with ExitStack() as stack:
        workers = {}
        for engine in dict.fromkeys(variant.engine for variant in variants):
            workers[engine] = stack.enter_context(Worker(plan, engine, threads))
        described = [workers[variant.engine].describe(variant) for variant in variants]
        rates: dict[str, list[float | None]] = {engine: [] for engine in workers}
        draws: list[list[Draw]] = [[] for _ in variants]
        for turn in range(warmup + repeat):
            for index, variant in enumerate(variants):
                draw = workers[variant.engine].draw(variant, seed=turn)
                draws[index].append(draw)
                advance(1)
            if turn in (0, warmup + repeat - 1):
                for engine, worker in workers.items():
                    rates[engine].append(worker.rate())
        bandwidth = max(record["bandwidth"], read_bandwidth(threads))
        best = {name: max((r for r in found if r), default=None) for name, found in rates.items()}
        record["engines"] = {
            engine: _engine(worker, best[engine]) for engine, worker in workers.items()
        }
    record["bandwidth"] = bandwidth
    record["variants"] = [
        {
            "engine": variant.engine,
            "batch_size": variant.batch_size,
            **summarise(taken, taken[warmup:], variant.batch_size),
            "iterations": about["iterations"],
            "options": about["options"],
            "floor": floor(about["work"], best[variant.engine], bandwidth, variant.batch_size),
        }
        for variant, taken, about in zip(variants, draws, described, strict=True)
    ]
    for entry in record["variants"]:
        entry["near_floor"] = near_floor(entry)
    record["repeat"], record["warmup"] = repeat, warmup
    record["machine"]["load_after"] = round(os.getloadavg()[0], 2)
    record["seconds"] = time.perf_counter() - start
    return record


def _preamble(path: Path, threads: int | None) -> dict[str, Any]:
    with Plan.open(path) as plan:
        manifest = plan.manifest
        return {
            "format": FORMAT,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "plan": {
                "name": manifest.name,
                "family": manifest.family,
                "precision": manifest.precision,
                "bytes": plan.size,
            },
            "machine": describe_machine(),
            "versions": describe_versions(),
            "threads": threads,
            "bandwidth": read_bandwidth(threads),
        }


def _engine(worker: Worker, rate: float | None) -> dict[str, Any]:
    return {
        "runs": worker.loaded.engine,
        "precision": worker.loaded.precision,
        "load_seconds": worker.loaded.load_seconds,
        "first_image_seconds": worker.first_image_seconds,
        "matrix_rate": rate,
    }


def summarise(every: Sequence[Draw], counted: Sequence[Draw], batch: int) -> dict[str, Any]:
    """What draws of `batch` images cost, an image: all but memory from those that count.

    Memory is that of the first draw: later ones may find what other variants left.
    """
    totals = [draw.seconds["total"] / batch for draw in counted]
    return {
        "seconds_an_image": {
            "median": float(np.median(totals)),
            "p90": float(np.quantile(totals, 0.9)),
            "all": totals,
        },
        "cpu_seconds_an_image": float(np.median([draw.cpu_seconds for draw in counted])) / batch,
        "images_a_second": 1 / float(np.median(totals)),
        "parts": _parts(counted, batch),
        "head_calls": counted[0].head_calls,
        "head_rows": counted[0].head_rows,
        "peak_memory_bytes": every[0].peak_memory,
    }


def _parts(draws: Sequence[Draw], batch: int) -> dict[str, float]:
    """Median seconds an image in each graph; the host has what is left of the whole."""
    graphs = [name for name in draws[0].seconds if name not in NOT_GRAPHS]
    parts = {
        name: float(np.median([draw.seconds[name] for draw in draws])) / batch for name in graphs
    }
    left = [draw.seconds["total"] - sum(draw.seconds[name] for name in graphs) for draw in draws]
    return {**parts, "host": float(np.median(left)) / batch}


def floor(
    work: Work | None, rate: float | None, bandwidth: float, batch: int
) -> dict[str, Any] | None:
    """Seconds an image that the work cannot take less than; None where that is not known."""
    if work is None or rate is None:
        return None
    parts = {part: seconds / batch for part, seconds in work.floor(rate, bandwidth).items()}
    return {
        "seconds_an_image": sum(parts.values()),
        "parts": parts,
        "flops_an_image": work.flops / batch,
        "weight_bytes_an_image": work.weight_bytes / batch,
    }


def near_floor(entry: dict[str, Any]) -> float | None:
    """How much of the time the floor explains: 1 is as fast as can be."""
    if entry["floor"] is None:
        return None
    seconds: float = entry["floor"]["seconds_an_image"]
    median: float = entry["seconds_an_image"]["median"]
    return seconds / median
