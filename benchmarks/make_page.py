"""Makes docs/benchmarks.md and its chart from the records in benchmarks/results.

    python -m benchmarks.make_page

A record is what `disa-bench --json` or `python -m benchmarks.official_loop --json` wrote. The
page holds no figure that is not in a record.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from disa.cli import DisaCommand
from disa.errors import DisaError
from disa.runtime.bench_report import HEADINGS, figure, row, write_text

from .official_loop import BF16, FP32, race_rows
from .official_loop import HEADINGS as RACE_HEADINGS
from .savings import HEADINGS as SAVING_HEADINGS
from .savings import saving_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "images" / "benchmarks.png"
WEIGHTS_TARGET, LOAD_TARGET = 1.3, 1.0

Record = Mapping[str, Any]


@click.command(cls=DisaCommand)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--page", type=click.Path(path_type=Path), default=PAGE)
@click.option("--chart", type=click.Path(path_type=Path), default=CHART)
def main(results: Path, page: Path, chart: Path) -> None:
    """Make the page of the benchmarks and its chart from their records."""
    races, benches, savings = read_results(results)
    chart.parent.mkdir(parents=True, exist_ok=True)
    page.parent.mkdir(parents=True, exist_ok=True)
    if races:
        draw_chart(races, chart)
    write_text(make_page(races, benches, savings, results / "notes.md"), page)


def read_results(folder: Path) -> tuple[list[Record], list[Record], list[Record]]:
    """Records of races, of disa-bench and of savings, in the order of their names."""
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DisaError(f"{path} is not JSON ({error}): measure again") from error
    if not records:
        raise DisaError(f"there are no records in {folder}: measure with --json first")
    races = [record for record in records if record.get("kind") == "official_loop"]
    benches = [record for record in records if "variants" in record]
    return races, benches, [record for record in records if record.get("kind") == "savings"]


def make_page(
    races: Sequence[Record], benches: Sequence[Record], savings: Sequence[Record], notes: Path
) -> str:
    """The page in Markdown."""
    parts = [
        "# Benchmarks",
        "Made by `python -m benchmarks.make_page` from the records in `benchmarks/results`. Every "
        "figure was measured, with random weights.",
    ]
    if races:
        parts.append("![Seconds an image](images/benchmarks.png)")
    if races:
        parts += ["## Against the original way", RACE_TEXT]
        parts += [part for record in races for part in race_parts(record)]
    if benches:
        parts += ["## disa-bench", BENCH_TEXT]
        parts += [part for record in benches for part in bench_parts(record)]
    if savings:
        parts += ["## Exact savings", "    python -m benchmarks.savings", SAVINGS_TEXT]
        parts += [part for record in savings for part in saving_parts(record)]
    parts += ["## Targets", markdown(("target", "measured", "met"), targets(races, benches))]
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    return "\n\n".join(parts) + "\n"


RACE_TEXT = (
    "The baseline (`benchmarks/official_model.py`) is a plain PyTorch MAR that does the work of "
    "the original code: guided halves are doubled rows from the first layer on, all tokens are "
    "projected before the visible ones are picked, every decoder block runs over all tokens, and "
    "condition and timestep are embedded at every denoising step. Contenders have the same "
    "weights, schedule and noise and take turns at every AR iteration. `difference` is the largest "
    "of the sampled tokens from the fp32 baseline's, relative to the largest token. The VAE is "
    "the same for all and left out."
)
BENCH_TEXT = (
    "Seconds are medians an image; `CPU s` are those of all threads. `floor` is the time of "
    "the matrix products at the rate of a large one on this machine, or of reading the weights "
    "once a call, whichever is longer; "
    "`near` is how much of the time it explains. `host` is all outside the graphs, noise included. "
    "`peak MiB` is resident memory of the process with Python and the mapped plan."
)


SAVINGS_TEXT = (
    "What gives the same numbers for less work, each timed on its own at MAR-B's sizes with one "
    "thread: 4 tokens of one guided image, half of the tokens visible. Milliseconds are CPU time."
)


def saving_parts(record: Record) -> list[str]:
    """Savings: their machine and table."""
    return [f"{machine_of(record)}.", markdown(SAVING_HEADINGS, saving_rows(record))]


def race_parts(record: Record) -> list[str]:
    """A race: its command, its machine, its table."""
    sampled = len(record["measured"]) < record["iterations"]
    measured = ", ".join(map(str, record["measured"]))
    clock = (
        "Wall time."
        if record["clock"] == "wall"
        else "CPU time of the process, because other work was running on the machine."
    )
    return [
        f"### {record['shapes']}, batch {record['batch_size']}, {record['iterations']} iterations, "
        f"{record['schedule']} steps",
        f"    {race_command(record)}",
        f"{machine_of(record)}, {count(record['threads'], 'thread')}. {clock} "
        + (
            f"Measured were the AR iterations {measured}; backbone calls and denoising steps in "
            "between are interpolated, and the image is their sum."
            if sampled
            else "Every AR iteration was measured."
        ),
        markdown(RACE_HEADINGS, race_rows(record)),
    ]


def bench_parts(record: Record) -> list[str]:
    """A run of disa-bench: its command, its machine, its table."""
    engines = "; ".join(
        f"{engine['runs']}, loaded in {engine['load_seconds']:.2f} s, first image "
        f"{engine['first_image_seconds']:.2f} s after the start of the process"
        + (
            f", {engine['matrix_rate'] / 1e9:.0f} GFLOP/s in a large product"
            if engine["matrix_rate"]
            else ""
        )
        for engine in record["engines"].values()
    )
    threads = record["threads"] or record["machine"]["cores"]
    return [
        f"### {record['plan']['name']}",
        f"    {bench_command(record)}",
        f"{machine_of(record)}, {count(threads, 'thread')}, {record['bandwidth'] / 1e9:.1f} GB/s. "
        f"{engines}. {count(record['repeat'], 'draw')} of each variant.",
        markdown(HEADINGS, [row(entry) for entry in record["variants"]]),
    ]


def count(number: int, what: str) -> str:
    """`2 threads`, `1 thread`."""
    return f"{number} {what}" + ("" if number == 1 else "s")


def machine_of(record: Record) -> str:
    """The machine, how busy it was, and when."""
    machine, versions = record["machine"], record["versions"]
    named = [f"{name} {versions[name]}" for name in ("onnxruntime", "torch") if name in versions]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {', '.join(named)}, {record['date']}, "
        f"load average {machine['load']} before and {machine['load_after']} after"
    )


def race_command(record: Record) -> str:
    """The command that makes such a record."""
    engines = [name.removeprefix("disa ") for name in record["contenders"] if "disa " in name]
    strategy, steps = record["schedule"].split(" ")
    options = {
        "--shapes": record["shapes"],
        "--engine": ",".join(engines),
        "--batch-size": record["batch_size"],
        "--iterations": record["iterations"],
        "--steps": steps,
        "--strategy": strategy,
        "--threads": record["threads"],
        "--clock": record["clock"],
        "--every": record["every"],
    }
    return "python -m benchmarks.official_loop " + _options(options)


def bench_command(record: Record) -> str:
    """The command that makes such a record."""
    name, entries = record["plan"]["name"], record["variants"]
    shapes, random, _ = name.partition("-random")
    plan = f"--shapes {shapes} --random-weights" if random else name
    options = {
        "--engine": _values(entry["engine"] for entry in entries),
        "--batch-size": _values(entry["batch_size"] for entry in entries),
        "--iterations": _values(entry["iterations"] for entry in entries),
        "--steps": _values(entry["options"]["steps"] for entry in entries),
        "--threads": record["threads"],
        "--repeat": record["repeat"],
        "--warmup": record["warmup"],
    }
    return f"disa-bench {plan} " + _options(options)


def shapes_known() -> set[str]:
    """Names of official sizes."""
    from disa.exporter.mar_config import SIZES

    return set(SIZES)


def _values(values: Any) -> str:
    return ",".join(str(value) for value in dict.fromkeys(values))


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in options.items() if value is not None)


def targets(races: Sequence[Record], benches: Sequence[Record]) -> list[list[str]]:
    """Each target, what was measured, and whether it is met."""
    rows = []
    usual = [record for record in races if record["iterations"] == 64]
    for batch in (1, 8):
        for name, wanted in ((FP32, 6.0), (BF16, 2.0)):
            found = [record for record in usual if record["batch_size"] == batch]
            ratio = max((speed_up(record, name) for record in found), default=None)
            rows.append(
                _target(f"{wanted:g} times the speed of {name}, batch {batch}", ratio, wanted)
            )
    default = next((record for record in races if record["iterations"] == 256), None)
    ours = next((record for record in usual if record["batch_size"] == 1), None)
    ratio = None
    if default and ours:
        ratio = default["contenders"][FP32]["seconds_an_image"] / best_plan(ours)
    rows.append(_target("30 times the original default (256 iterations, 100 steps)", ratio, 30.0))
    rows.append(["10 and 3 times with int8", "not measured", "no"])
    for record in benches:
        rows += memory_and_load(record)
    return rows


def memory_and_load(record: Record) -> list[list[str]]:
    """Peak memory of a batch of one and load time, against the size of the plan."""
    name = record["plan"]["name"]
    if not name.startswith(tuple(shapes_known())):
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


def _target(what: str, ratio: float | None, wanted: float) -> list[str]:
    if ratio is None:
        return [what, "not measured", "no"]
    return [what, f"{ratio:.2f} times", "yes" if ratio >= wanted else "no"]


def speed_up(record: Record, baseline: str) -> float:
    """How many times faster the fastest plan is than a baseline."""
    seconds: float = record["contenders"][baseline]["seconds_an_image"]
    return seconds / best_plan(record)


def best_plan(record: Record) -> float:
    """Seconds an image of the fastest plan."""
    return min(
        float(result["seconds_an_image"])
        for name, result in record["contenders"].items()
        if name.startswith("disa ")
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns after the first are aligned to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw_chart(races: Sequence[Record], path: Path) -> None:
    """Seconds an image of every contender, backbone and head stacked; one panel a race."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure_, panels = pyplot.subplots(
        len(races), 1, figsize=(8, 1 + 1.5 * len(races)), squeeze=False, layout="constrained"
    )
    for panel, record in zip(panels[:, 0], races, strict=True):
        names = list(record["contenders"])[::-1]
        results = [record["contenders"][name] for name in names]
        backbone = [result["backbone_seconds_an_image"] for result in results]
        head = [result["head_seconds_an_image"] for result in results]
        panel.barh(names, backbone, label="backbone", color="#4c72b0")
        bars = panel.barh(names, head, left=backbone, label="head", color="#dd8452")
        labels = [f" {figure(result['seconds_an_image'])}" for result in results]
        panel.bar_label(bars, labels=labels)
        panel.margins(x=0.12)
        kind = "CPU seconds" if record["clock"] == "cpu" else "seconds"
        panel.set_title(
            f"{record['shapes']}, batch {record['batch_size']}, {record['iterations']} iterations, "
            f"{record['schedule']}: {kind} an image on {record['machine']['processor']}, "
            f"{count(record['threads'], 'thread')}",
            fontsize=9,
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, loc="lower right")
    figure_.savefig(path, dpi=110)
    pyplot.close(figure_)


if __name__ == "__main__":
    main()
