"""Measures variants in alternation, so that changes of the machine's speed affect all equally."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..engines.plan.plan import Plan
from ..runtime.stats import HOST_PARTS
from .calls import Work
from .machine import describe_machine, describe_versions, read_bandwidth
from .variant import Variant
from .worker import BatchCost, Worker

FORMAT = 1


def measure(
    plan: Path,
    variants: Sequence[Variant],
    *,
    repeat: int,
    warmup: int,
    threads: int | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Generate `warmup` + `repeat` batches with every variant, in alternation.

    Args:
        plan: path of the plan.
        repeat: measured batches of each variant.
        warmup: batches of each variant before the measured ones.
        threads: CPU threads; None for all cores.
        advance: called with 1 after each batch.

    Returns:
        The record: costs of each variant, engines, machine and versions, as JSON.

    Raises:
        DisaError: a variant cannot be generated; then there is no record.
    """
    start = time.perf_counter()
    record = _preamble(plan, threads)
    with ExitStack() as stack:
        workers = {}
        for engine in dict.fromkeys(variant.engine for variant in variants):
            workers[engine] = stack.enter_context(Worker(plan, engine, threads))
        descriptions = [workers[variant.engine].describe(variant) for variant in variants]
        rates: dict[str, list[float | None]] = {engine: [] for engine in workers}
        costs: list[list[BatchCost]] = [[] for _ in variants]
        for turn in range(warmup + repeat):
            for index, variant in enumerate(variants):
                costs[index].append(workers[variant.engine].generate(variant, seed=turn))
                advance(1)
            if turn in (0, warmup + repeat - 1):
                for engine, worker in workers.items():
                    rates[engine].append(worker.rate())
        bandwidth = max(record["bandwidth"], read_bandwidth(threads))
        best = {name: max((r for r in found if r), default=None) for name, found in rates.items()}
        record["engines"] = {
            engine: _describe_engine(worker, best[engine]) for engine, worker in workers.items()
        }
    record["bandwidth"] = bandwidth
    record["variants"] = [
        {
            "engine": variant.engine,
            "batch_size": variant.batch_size,
            **summarise(batches, batches[warmup:], variant.batch_size),
            "iterations": description["iterations"],
            "options": description["options"],
            "floor": floor(
                description["work"], best[variant.engine], bandwidth, variant.batch_size
            ),
        }
        for variant, batches, description in zip(variants, costs, descriptions, strict=True)
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


def _describe_engine(worker: Worker, rate: float | None) -> dict[str, Any]:
    return {
        "runs": worker.loaded.engine,
        "precision": worker.loaded.precision,
        "load_seconds": worker.loaded.load_seconds,
        "first_image_seconds": worker.first_image_seconds,
        "matrix_rate": rate,
    }


def summarise(
    every: Sequence[BatchCost], measured: Sequence[BatchCost], batch: int
) -> dict[str, Any]:
    """The cost of an image, as JSON.

    Args:
        every: the costs of all batches. The peak memory is that of the first one: memory of other
            variants may count for the later ones.
        measured: the costs of the batches after the warm-up.
        batch: images in a batch.
    """
    totals = [cost.seconds["total"] / batch for cost in measured]
    return {
        "seconds_an_image": {
            "median": float(np.median(totals)),
            "p90": float(np.quantile(totals, 0.9)),
            "all": totals,
        },
        "cpu_seconds_an_image": float(np.median([cost.cpu_seconds for cost in measured])) / batch,
        "images_a_second": 1 / float(np.median(totals)),
        "parts": _parts(measured, batch),
        "head_calls": measured[0].head_calls,
        "head_rows": measured[0].head_rows,
        "peak_memory_bytes": every[0].peak_memory,
    }


def _parts(costs: Sequence[BatchCost], batch: int) -> dict[str, float]:
    """Median seconds of an image in each graph, and outside all graphs ("host")."""
    graphs = [name for name in costs[0].seconds if name not in HOST_PARTS]
    parts = {
        name: float(np.median([cost.seconds[name] for cost in costs])) / batch for name in graphs
    }
    host = [cost.seconds["total"] - sum(cost.seconds[name] for name in graphs) for cost in costs]
    return {**parts, "host": float(np.median(host)) / batch}


def floor(
    work: Work | None, rate: float | None, bandwidth: float, batch: int
) -> dict[str, Any] | None:
    """The floor of an image, as JSON; None if the work or the rate is unknown.

    Args:
        rate: operations per second.
        bandwidth: bytes per second.
        batch: images in the batch that `work` generates.
    """
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
    """The floor as a share of the measured time: 1 is as fast as possible; None if unknown."""
    if entry["floor"] is None:
        return None
    seconds: float = entry["floor"]["seconds_an_image"]
    median: float = entry["seconds_an_image"]["median"]
    return seconds / median
