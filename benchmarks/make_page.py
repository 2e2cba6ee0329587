"""Makes docs/benchmarks.md and its chart from the records in benchmarks/results.

    python -m benchmarks.make_page

A record is what `disa-bench --json`, or `python -m benchmarks.official_loop`, `.savings` or
`.growth` with --json wrote. The page holds no figure that is not in a record.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from disa.cli import DisaCommand
from disa.errors import DisaError
from disa.runtime.bench_report import HEADINGS, figure, row, write_text

from .growth import HEADINGS as GROWTH_HEADINGS
from .growth import draw_growth, growth_rows
from .markdown import markdown
from .official_loop import FLOOR_HEADINGS, floor_rows, race_rows
from .official_loop import HEADINGS as RACE_HEADINGS
from .savings import HEADINGS as SAVING_HEADINGS
from .savings import saving_rows
from .targets import targets

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
CHART = ROOT / "docs" / "images" / "benchmarks.png"
GROWTH_CHART = "growth.png"

Record = Mapping[str, Any]


@click.command(cls=DisaCommand)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--page", type=click.Path(path_type=Path), default=PAGE)
@click.option("--chart", type=click.Path(path_type=Path), default=CHART)
def main(results: Path, page: Path, chart: Path) -> None:
    """Make the page of the benchmarks and its chart from their records."""
    records = read_results(results)
    chart.parent.mkdir(parents=True, exist_ok=True)
    page.parent.mkdir(parents=True, exist_ok=True)
    if records.races:
        draw_chart(records.races, chart)
    for record in records.growths:
        draw_growth(record, chart.with_name(GROWTH_CHART))
    write_text(make_page(records, results / "notes.md"), page)


@dataclass(frozen=True)
class Records:
    """Records by their kind, each in the order of their names."""

    races: Sequence[Record]
    benches: Sequence[Record]
    savings: Sequence[Record]
    growths: Sequence[Record]


def read_results(folder: Path) -> Records:
    """The records of a folder that this page is made from; others are left alone."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DisaError(f"{path} is not JSON ({error}): measure again") from error
    if not found:
        raise DisaError(f"there are no records in {folder}: measure with --json first")

    def of(kind: str) -> list[Record]:
        return [record for record in found if record.get("kind") == kind]

    benches = [record for record in found if "variants" in record]
    return Records(of("official_loop"), benches, of("savings"), of("growth"))


def make_page(records: Records, notes: Path) -> str:
    """The page in Markdown."""
    parts = [
        "# Benchmarks",
        "Made by `python -m benchmarks.make_page` from the records in `benchmarks/results`. Every "
        "figure was measured, with random weights.",
    ]
    if records.races:
        parts += [
            "![Seconds an image](images/benchmarks.png)",
            "## Against the original way",
            RACE_TEXT,
            RACE_PLANS,
        ]
        parts += [part for record in records.races for part in race_parts(record)]
    if records.benches:
        parts += ["## disa-bench", BENCH_TEXT]
        parts += [part for record in records.benches for part in bench_parts(record)]
    if records.savings:
        parts += ["## Exact savings", "    python -m benchmarks.savings", SAVINGS_TEXT]
        parts += [part for record in records.savings for part in saving_parts(record)]
    if records.growths:
        parts += ["## How the cost grows", "    python -m benchmarks.growth", GROWTH_TEXT]
        parts += [part for record in records.growths for part in growth_parts(record)]
    rows = targets(records.races, records.benches)
    parts += ["## Targets", markdown(("target", "measured", "met"), rows)]
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
RACE_PLANS = (
    "    python -m benchmarks.random_plan mar_b -o mar_b.plan\n"
    "    python -m benchmarks.random_plan mar_b --precision int8 -o mar_b_int8.plan"
)
BENCH_TEXT = (
    "Seconds are medians an image; `CPU s` are those of all threads. `floor` is the time of "
    "the matrix products at the rate of a large one on this machine, or of reading the weights "
    "once a call, whichever is longer; "
    "`near` is how much of the time it explains, over 100% where the processor's clock was higher "
    "for the model than for the product. `host` is all outside the graphs, noise included. "
    "`peak MiB` is resident memory of the process with Python and the mapped plan."
)


SAVINGS_TEXT = (
    "What gives the same numbers for less work, each timed on its own at MAR-B's sizes with one "
    "thread: 4 tokens of one guided image, half of the tokens visible. Milliseconds are CPU time."
)


GROWTH_TEXT = (
    "A small MAR (width 256, 64 tokens, guided) draws 4 images together in 16 AR iterations of 25 "
    "steps, and one quantity is varied at a time. Seconds are medians of a batch; GFLOP are those "
    "of the matrix products. Where GFLOP/s stays or rises, time grows no faster than work."
)


def growth_parts(record: Record) -> list[str]:
    """Growth: its chart, machine and table."""
    return [
        f"![Seconds a batch over each quantity](images/{GROWTH_CHART})",
        f"{machine_of(record)}. {count(record['repeat'], 'draw')} of each point.",
        markdown(GROWTH_HEADINGS, growth_rows(record)),
    ]


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
        *floor_parts(record),
    ]


def floor_parts(record: Record) -> list[str]:
    """What the arithmetic of an image allows, where its rates were measured."""
    if "rates" not in record:
        return []
    return [
        f"The operations of an image that no exact saving removes are "
        f"{record['flops_an_image'] / 1e9:.0f} GFLOP. At the rate of a large matrix product on the "
        "same machine (fp32 and int8 in ONNX Runtime, bf16 in PyTorch) that is the least time, and "
        "the largest factor, of any implementation in that precision:",
        markdown(FLOOR_HEADINGS, floor_rows(record)),
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
    plans = [name.split()[1:] for name in record["contenders"] if name.startswith("disa ")]
    strategy, steps = record["schedule"].split(" ")
    other = [f"--plan {record['shapes']}_{names[1]}.plan" for names in plans if len(names) > 1]
    if other:
        other.insert(0, f"--plan {record['shapes']}.plan")
    options = {
        "--shapes": record["shapes"],
        "--engine": _values(names[0] for names in plans),
        "--batch-size": record["batch_size"],
        "--iterations": record["iterations"],
        "--steps": steps,
        "--strategy": strategy,
        "--threads": record["threads"],
        "--clock": record["clock"],
        "--every": record["every"],
    }
    return " ".join(["python -m benchmarks.official_loop", *other, _options(options)])


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


def _values(values: Any) -> str:
    return ",".join(str(value) for value in dict.fromkeys(values))


def _options(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name} {value}" for name, value in options.items() if value is not None)


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
