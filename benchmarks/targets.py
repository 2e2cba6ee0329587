"""What was aimed at, and how near the records come."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from disa.exporter.mar_config import SIZES

from .official_loop import BF16, FP32

Record = Mapping[str, Any]

WANTED = {False: {FP32: 6.0, BF16: 2.0}, True: {FP32: 10.0, BF16: 3.0}}
"""How many times faster than each baseline a plan is to be, without int8 and with it."""
WEIGHTS_TARGET, LOAD_TARGET = 1.3, 1.0
"""Peak memory in sizes of the plan, and seconds to load it."""


def targets(races: Sequence[Record], benches: Sequence[Record]) -> list[list[str]]:
    """Each target, what was measured, and whether it is met."""
    usual = [record for record in races if record["iterations"] == 64]
    rows = []
    for int8, wanted in WANTED.items():
        for batch, (baseline, factor) in product((1, 8), wanted.items()):
            found = [record for record in usual if record["batch_size"] == batch]
            ratios = [speed_up(record, baseline, int8) for record in found]
            name = f"{factor:g} times the speed of {baseline}, batch {batch}"
            rows.append(_target(name + (", with int8" if int8 else ""), ratios, factor))
    singles = [record for record in usual if record["batch_size"] == 1]
    ratios = [
        default["contenders"][FP32]["seconds_an_image"] / seconds
        for default in races
        if default["iterations"] == 256
        for record, int8 in product(singles, (False, True))
        if (seconds := best_plan(record, int8))
    ]
    rows.append(_target("30 times the original default (256 iterations, 100 steps)", ratios, 30.0))
    for record in benches:
        rows += memory_and_load(record)
    return rows


def memory_and_load(record: Record) -> list[list[str]]:
    """Peak memory of a batch of one and load time, against the size of the plan."""
    name = record["plan"]["name"]
    if not name.startswith(tuple(SIZES)):
        return []
    single = next(entry for entry in record["variants"] if entry["batch_size"] == 1)
    share = single["peak_memory_bytes"] / record["plan"]["bytes"]
    load = min(engine["load_seconds"] for engine in record["engines"].values())
    return [
        [
            f"peak memory under {WEIGHTS_TARGET} times the weights ({name}, batch 1)",
            f"{share:.2f} times",
            "yes" if share < WEIGHTS_TARGET else "no",
        ],
        [
            f"load under {LOAD_TARGET:g} s from a warm page cache ({name})",
            f"{load:.2f} s",
            "yes" if load < LOAD_TARGET else "no",
        ],
    ]


def _target(what: str, ratios: Sequence[float | None], wanted: float) -> list[str]:
    ratio = max((ratio for ratio in ratios if ratio), default=None)
    if ratio is None:
        return [what, "not measured", "no"]
    return [what, f"{ratio:.2f} times", "yes" if ratio >= wanted else "no"]


def speed_up(record: Record, baseline: str, int8: bool = False) -> float | None:
    """How many times faster the fastest plan is than a baseline; None if there was no plan."""
    seconds: float = record["contenders"][baseline]["seconds_an_image"]
    best = best_plan(record, int8)
    return seconds / best if best else None


def best_plan(record: Record, int8: bool = False) -> float | None:
    """Seconds an image of the fastest plan, of those in int8 or of the others."""
    return min(
        (
            float(result["seconds_an_image"])
            for name, result in record["contenders"].items()
            if name.startswith("disa ") and name.endswith(" int8") == int8
        ),
        default=None,
    )
