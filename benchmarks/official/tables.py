"""Tables of races."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from disa.bench.report import figure
from disa.tables import table

from .contenders import BF16, FP32

Record = Mapping[str, Any]

HEADINGS = (
    *("contender", "s/image", "backbone", "head", "ms/backbone call", "ms/head step"),
    *("against fp32", "against bf16", "against fastest official", "difference"),
)
FLOOR_HEADINGS = ("precision", "GFLOP/s", "s/image at least", "against fp32", "against bf16")


def race_rows(record: Record) -> list[list[str]]:
    """The cells of a record's contenders under HEADINGS; calls and steps are medians."""
    results = record["contenders"]
    seconds = {name: result["seconds_an_image"] for name, result in results.items()}
    return [
        [
            name,
            figure(result["seconds_an_image"]),
            figure(result["backbone_seconds_an_image"]),
            figure(result["head_seconds_an_image"]),
            milliseconds_a_call(result),
            figure(1000 * float(np.median(result["head_seconds_a_step"]))),
            *factors(seconds, name),
            f"{result['difference']:.1e}",
        ]
        for name, result in results.items()
    ]


def milliseconds_a_call(result: Mapping[str, Any]) -> str:
    """Milliseconds of a backbone call; if there are cached ones, of a full and of a cached one."""
    parts = [result["backbone_seconds_a_call"], result.get("cached_seconds_a_call", [])]
    return " / ".join(figure(1000 * float(np.median(part))) for part in parts if part)


def factors(seconds: Mapping[str, float], name: str) -> list[str]:
    """How many times as fast as official fp32, bf16, and the fastest official way it is."""
    fastest = min(value for other, value in seconds.items() if other.startswith("official"))
    return [times(base, seconds[name]) for base in (seconds[FP32], seconds.get(BF16), fastest)]


def times(base: float | None, seconds: float) -> str:
    """How many times as fast as a baseline; empty if it was not measured."""
    return "" if base is None else f"{base / seconds:.2f}x"


def floor_rows(record: Record) -> list[list[str]]:
    """The cells under FLOOR_HEADINGS: what an image takes at least, and the factors at most.

    That is the time of the operations that a guided image cannot do without, at the rate of a
    large matmul on the same machine.
    """
    if "flops_an_image" not in record:
        return []
    results = record["contenders"]
    baselines = [results.get(name, {}).get("seconds_an_image") for name in (FP32, BF16)]
    rows = []
    for precision, rate in record["rates"].items():
        if precision == "bf16" and BF16 not in results:
            continue  # It is emulated.
        least = record["flops_an_image"] / rate
        most = (times(seconds, least) for seconds in baselines)
        rows.append([precision, figure(rate / 1e9), figure(least), *most])
    return rows


def summary(record: Record) -> str:
    """A record for people."""
    machine = record["machine"]
    return "\n".join(
        [
            f"{record['shapes']}, batch {record['batch_size']}, {record['iterations']} iterations, "
            f"{record['schedule']}: {len(record['measured'])} iterations measured",
            f"{machine['processor']}, {machine['cores']} cores, load {machine['load']} before and "
            f"{machine['load_after']} after, {record['threads']} threads",
            table(HEADINGS, race_rows(record)),
            "",
            table(FLOOR_HEADINGS, floor_rows(record)),
        ]
    )
