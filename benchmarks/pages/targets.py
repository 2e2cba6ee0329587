"""What was aimed at, and how near the records come."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disa.exporter.families.configs.mar import SIZES

from ..official.contenders import BF16, FP32

Record = Mapping[str, Any]
USUAL_ITERATIONS, DEFAULT_ITERATIONS = 64, 256
REFRESH = " refresh "
WEIGHTS_TARGET, LOAD_TARGET = 1.3, 1.0
"""Peak memory in sizes of the plan, and seconds to load it."""


@dataclass(frozen=True)
class Way:
    """A way to run a plan, as the names of contenders say it.

    Attributes:
        precision: "", which is fp32, "bf16" or "int8".
        refresh: whether the backbone remembers.
    """

    precision: str = ""
    refresh: bool = False

    def fits(self, contender: str) -> bool:
        """Whether a contender is a plan that runs so."""
        name, remembers, _ = contender.partition(REFRESH)
        precision = name.split()[-1] if name.endswith((" bf16", " int8")) else ""
        return (
            name.startswith("disa ")
            and precision == self.precision
            and bool(remembers) == self.refresh
        )

    def __str__(self) -> str:
        words = [self.precision or "fp32"]
        return " ".join(words + ["with a backbone that remembers"] * self.refresh)


MAR_TARGETS: Mapping[Way, Mapping[int, float]] = {
    Way("bf16"): {1: 1.6, 8: 1.5},
    Way("bf16", refresh=True): {1: 4.5, 8: 4.0},
    Way("int8", refresh=True): {1: 7.0, 8: 6.0},
}
"""By batch size, how many times as fast as the original under bf16 autocast."""
DEFAULT_TARGET = 150.0
OWN_FP32_TARGET, OFFICIAL_BF16_TARGET = 1.8, 1.0
OTHER_SHAPES = ("flowar_s", "xar_b", "harmon_0.5b")


def targets(races: Sequence[Record], benches: Sequence[Record]) -> list[list[str]]:
    """Each target, what was measured, and whether it is met."""
    mar = [record for record in races if record["shapes"] in SIZES]
    rows = []
    for way, factors in MAR_TARGETS.items():
        for batch, factor in factors.items():
            ratios = [
                speed_up(record, BF16, way)
                for record in mar
                if (record["iterations"], record["batch_size"]) == (USUAL_ITERATIONS, batch)
            ]
            what = f"MAR, {way}, batch {batch}: {factor:g} times as fast as {BF16}"
            rows.append(_target(what, ratios, factor))
    rows.append(against_default(mar))
    for shapes in OTHER_SHAPES:
        found = [record for record in races if record["shapes"] == shapes]
        rows += against_own_and_official(shapes, found)
    for record in benches:
        rows += memory_and_load(record)
    return rows


def against_default(races: Sequence[Record]) -> list[str]:
    """Everything approximate together, against what the original does by default."""
    way = Way("int8", refresh=True)
    short = [record for record in races if record["iterations"] < USUAL_ITERATIONS]
    ratios = [
        default["contenders"][FP32]["seconds_an_image"] / seconds
        for default in races
        if default["iterations"] == DEFAULT_ITERATIONS
        for record in short
        if (seconds := fastest(record, way.fits))
    ]
    what = (
        f"MAR, {way}, fewer AR iterations: {DEFAULT_TARGET:g} times as fast as the original's "
        "default (256 iterations, 100 steps, fp32)"
    )
    return _target(what, ratios, DEFAULT_TARGET)


def against_own_and_official(shapes: str, races: Sequence[Record]) -> list[list[str]]:
    """bf16 of one of the other families."""
    bf16 = Way("bf16")
    own = [
        exact / seconds
        for record in races
        if (exact := fastest(record, Way().fits)) and (seconds := fastest(record, bf16.fits))
    ]
    official = [speed_up(record, BF16, bf16) for record in races]
    what = f"{shapes}, bf16: {OWN_FP32_TARGET:g} times as fast as disa in fp32"
    return [
        _target(what, own, OWN_FP32_TARGET),
        _target(f"{shapes}, bf16: faster than {BF16}", official, OFFICIAL_BF16_TARGET),
    ]


def memory_and_load(record: Record) -> list[list[str]]:
    """Peak memory of a batch of one and load time, against the size of the plan."""
    name = record["plan"]["name"]
    if not name.startswith(tuple(SIZES)):
        return []
    single = next(entry for entry in record["variants"] if entry["batch_size"] == 1)
    share = single["peak_memory_bytes"] / record["plan"]["bytes"]
    load = min(engine["load_seconds"] for engine in record["engines"].values())
    memory = f"peak memory under {WEIGHTS_TARGET} times the weights ({name}, batch 1)"
    loading = f"load under {LOAD_TARGET:g} s from a warm page cache ({name})"
    return [
        [memory, f"{share:.2f} times", "yes" if share < WEIGHTS_TARGET else "no"],
        [loading, f"{load:.2f} s", "yes" if load < LOAD_TARGET else "no"],
    ]


def _target(what: str, ratios: Sequence[float | None], factor: float) -> list[str]:
    ratio = max((ratio for ratio in ratios if ratio), default=None)
    if ratio is None:
        return [what, "not measured", "no"]
    return [what, f"{ratio:.2f} times", "yes" if ratio >= factor else "no"]


def speed_up(record: Record, baseline: str, way: Way) -> float | None:
    """How many times as fast as a baseline the fastest plan run that way is; None if none was."""
    seconds: float = record["contenders"][baseline]["seconds_an_image"]
    best = fastest(record, way.fits)
    return seconds / best if best else None


def fastest(record: Record, fits: Callable[[str], bool]) -> float | None:
    """Seconds an image of the fastest contender whose name fits."""
    return min(
        (
            float(result["seconds_an_image"])
            for name, result in record["contenders"].items()
            if fits(name)
        ),
        default=None,
    )
