"""The targets of docs/benchmarks.md, and how near the records come."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from disa.exporter.families.configs.mar import SIZES

from ..official.contenders import BF16, FP32

Record = Mapping[str, Any]
USUAL_ITERATIONS, DEFAULT_ITERATIONS = 64, 256
WEIGHTS_TARGET, LOAD_TARGET = 1.3, 1.0
"""Peak memory in sizes of the plan, and seconds to load it."""
CACHED = " with a cached backbone"
MAR_TARGETS = (
    *(("bf16", "", 1, 1.6), ("bf16", "", 8, 1.5)),
    *(("bf16", CACHED, 1, 4.5), ("bf16", CACHED, 8, 4.0)),
    *(("int8", CACHED, 1, 7.0), ("int8", CACHED, 8, 6.0)),
)
"""Precision, whether the backbone is cached, batch size, and how many times as fast as the
original under bf16 autocast."""
DEFAULT_TARGET = 150.0
OWN_FP32_TARGET, OFFICIAL_BF16_TARGET = 1.8, 1.0
OTHER_SHAPES = ("flowar_s", "xar_b", "harmon_0.5b")


def targets(races: Sequence[Record], bench: Record) -> tuple[list[str], list[list[str]]]:
    """Each target, and what was measured on each processor with bf16: headings and rows."""
    races = [record for record in races if has_bf16(record)]
    processors = list(dict.fromkeys(map(processor_of, races)))
    columns = [
        speed_targets([record for record in races if processor_of(record) == processor])
        for processor in processors
    ]
    rows = [[what, *(column[what] for column in columns)] for what in columns[0]]
    rows += [
        [what, *(found if each == processor_of(bench) else "" for each in processors)]
        for what, found in memory_and_load(bench).items()
    ]
    return ["target", *processors], rows


def processor_of(record: Record) -> str:
    """The name of a record's processor."""
    name: str = record["machine"]["processor"]
    return name


def speed_targets(races: Sequence[Record]) -> dict[str, str]:
    """Each target of speed, and what the races of one processor reached."""
    mar = [record for record in races if record["shapes"] in SIZES]
    found = {}
    for precision, cached, batch, factor in MAR_TARGETS:
        usual = [r for r in mar if (r["iterations"], r["batch_size"]) == (USUAL_ITERATIONS, batch)]
        what = f"MAR, {precision}{cached}, batch {batch}: {factor:g} times as fast as {BF16}"
        ratios = (official(r, BF16) / fastest(r, precision, cached) for r in usual)
        found[what] = _against(ratios, factor)
    found |= against_default(mar)
    for shapes in OTHER_SHAPES:
        found |= in_bf16(shapes, [record for record in races if record["shapes"] == shapes])
    return found


def has_bf16(record: Record) -> bool:
    """Whether the processor has bf16, which the targets are about."""
    return any(name.endswith(" bf16") for name in record["contenders"])


def against_default(races: Sequence[Record]) -> dict[str, str]:
    """Everything approximate together, against what the original does by default."""
    short = [record for record in races if record["iterations"] < USUAL_ITERATIONS]
    ratios = (
        official(default, FP32) / fastest(record, "int8", CACHED)
        for default in races
        if default["iterations"] == DEFAULT_ITERATIONS
        for record in short
    )
    what = (
        f"MAR, int8{CACHED}, fewer AR iterations: {DEFAULT_TARGET:g} times as fast as the "
        "original's default (256 iterations, 100 steps, fp32)"
    )
    return {what: _against(ratios, DEFAULT_TARGET)}


def in_bf16(shapes: str, races: Sequence[Record]) -> dict[str, str]:
    """bf16 of one of the other families."""
    own = (fastest(record) / fastest(record, "bf16") for record in races)
    against = (official(record, BF16) / fastest(record, "bf16") for record in races)
    what = f"{shapes}, bf16: {OWN_FP32_TARGET:g} times as fast as disa in fp32"
    return {
        what: _against(own, OWN_FP32_TARGET),
        f"{shapes}, bf16: faster than {BF16}": _against(against, OFFICIAL_BF16_TARGET),
    }


def memory_and_load(record: Record) -> dict[str, str]:
    """Peak memory of a batch of one and load time, against the size of the plan."""
    name = record["plan"]["name"]
    single = next(entry for entry in record["variants"] if entry["batch_size"] == 1)
    share = single["peak_memory_bytes"] / record["plan"]["bytes"]
    load = min(engine["load_seconds"] for engine in record["engines"].values())
    memory = f"peak memory under {WEIGHTS_TARGET} times the weights ({name}, batch 1)"
    loading = f"load under {LOAD_TARGET:g} s from a warm page cache ({name})"
    return {
        memory: _judged(f"{share:.2f} times", share < WEIGHTS_TARGET),
        loading: _judged(f"{load:.2f} s", load < LOAD_TARGET),
    }


def _against(ratios: Iterable[float], factor: float) -> str:
    ratio = max(ratios)
    return _judged(f"{ratio:.2f} times", ratio >= factor)


def _judged(figure: str, met: bool) -> str:
    return f"{figure}, {'met' if met else 'not met'}"


def official(record: Record, way: str) -> float:
    """Seconds an image of the original."""
    seconds: float = record["contenders"][way]["seconds_an_image"]
    return seconds


def fastest(record: Record, precision: str = "", cached: str = "") -> float:
    """Seconds an image of the fastest plan in a precision (fp32 by default)."""
    words = f"disa [^ ]+{f' {precision}' if precision else ''}{' refresh .+' if cached else ''}"
    return min(
        float(result["seconds_an_image"])
        for name, result in record["contenders"].items()
        if re.fullmatch(words, name)
    )
