"""docs/benchmarks.md: races against the original code, disa-bench, savings, growth, targets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from disa.bench.report import HEADINGS, figure, row
from disa.errors import DisaError
from disa.exporter.families.configs.mar import SIZES
from disa.tables import markdown

from .. import growth
from ..official import tables
from .page import Record, count, machine_of, notes, of_kind, read_results
from .targets import USUAL_ITERATIONS, targets

RACE_TEXT = (
    "The baseline (`benchmarks/official/mar.py`) is a plain PyTorch MAR that does the work of "
    "the original code: guided halves are doubled rows from the first layer on, all tokens are "
    "projected before the visible ones are picked, every decoder block runs over all tokens, and "
    "condition and timestep are embedded at every denoising step. Contenders have the same "
    "weights, schedule and noise and take turns at every AR iteration. `difference` is the largest "
    "of the sampled tokens from the fp32 baseline's, relative to the largest token. The VAE is "
    "the same for all and left out.\n\n"
    "bf16 is an fp32 plan with `--engine openvino`. A contender with "
    "`refresh 9:5` has a [backbone that remembers](cached-backbone.md), which is approximate: the "
    "first five AR iterations and every ninth after them are full passes, the others compute only "
    "what is new. Both kinds are timed in each measured iteration, with all that they do to the "
    "caches, and the image adds up those of the plan; its `difference` is that of one cached pass "
    "behind a full one.\n\nFlowAR, xAR (`benchmarks/official/flow.py`) and Harmon "
    "(`benchmarks/official/harmon.py`) have baselines of the same kind: "
    "`python -m benchmarks.official_loop --shapes flowar_s`, `xar_b` or `harmon_0_5b`."
)
RACE_PLANS = (
    "    python -m benchmarks.random_plan mar_b --cached-backbone -o mar_b.plan\n"
    "    python -m benchmarks.random_plan mar_b --precision int8 --cached-backbone "
    "-o mar_b_int8.plan"
)
ITERATIONS_TEXT = "The same in some AR iterations only; milliseconds are medians of all rounds."
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
    "thread: 4 tokens of one guided image, half of the tokens visible. Milliseconds are CPU time. "
    "The script that measured this is no longer kept; those of the other families are in "
    "[The families, measured](families.md), with their command."
)
SAVING_HEADINGS = ("saving", "before", "after", "milliseconds of CPU time of")
GROWTH_TEXT = (
    "A small MAR (width 256, 64 tokens, guided) draws 4 images together in 16 AR iterations of 25 "
    "steps, and one quantity is varied at a time. Seconds are medians of a batch; GFLOP are those "
    "of the matrix products. Where GFLOP/s stays or rises, time grows no faster than work."
)
CLOCK_TEXT = {
    "wall": "Wall time.",
    "cpu": "CPU time of the process, because other work was running on the machine.",
}


def page(results: Path) -> str:
    """The page in Markdown. It holds no figure that is not in a record."""
    records = read_results(results)
    if not records:
        raise DisaError(f"there are no records in {results}: measure with --json first")
    races = of_kind(records, "official_loop")
    images = races_of_images(records)
    benches = [record for record in records if "variants" in record]
    parts = [
        "# Benchmarks",
        "Made by `python -m benchmarks.pages` from the records in `benchmarks/results`. Every "
        "figure was measured, with random weights.",
    ]
    chart = "![Seconds an image](images/benchmarks.png)"
    head = ["## Against the original way", RACE_TEXT, RACE_PLANS]
    parts += _section([chart, *head], race_parts, images)
    singles = [race for race in races if race not in images]
    parts += _section(["## Single AR iterations", ITERATIONS_TEXT], race_parts, singles)
    parts += _section(["## disa-bench", BENCH_TEXT], bench_parts, benches)
    parts += _section(["## Exact savings", SAVINGS_TEXT], saving_parts, of_kind(records, "savings"))
    head = ["## How the cost grows", "    python -m benchmarks.growth", GROWTH_TEXT]
    parts += _section(head, growth_parts, of_kind(records, "growth"))
    parts += ["## Targets", markdown(("target", "measured", "met"), targets(images, benches))]
    return "\n\n".join([*parts, *notes(results / "notes.md")]) + "\n"


def races_of_images(records: Sequence[Record]) -> list[Record]:
    """The races of whole images: MAR first, with its usual iterations before others."""

    def place(race: Record) -> tuple[Any, ...]:
        iterations, batch = race["iterations"], race["batch_size"]
        return race["shapes"] not in SIZES, iterations != USUAL_ITERATIONS, iterations, batch

    return sorted(filter(tables.has_images, of_kind(records, "official_loop")), key=place)


def _section(
    head: Sequence[str], parts: Callable[[Record], list[str]], records: Sequence[Record]
) -> list[str]:
    """A section of the page; nothing where there is no record."""
    return [*head, *(part for record in records for part in parts(record))] if records else []


def growth_parts(record: Record) -> list[str]:
    """Growth: its chart, machine and table."""
    return [
        "![Seconds a batch over each quantity](images/growth.png)",
        f"{machine_of(record)}. {count(record['repeat'], 'draw')} of each point.",
        markdown(growth.HEADINGS, growth.growth_rows(record)),
    ]


def saving_parts(record: Record) -> list[str]:
    """Savings: their machine and table."""
    rows = [
        [entry["saving"], figure(entry["before"]), figure(entry["after"]), entry["of"]]
        for entry in record["entries"]
    ]
    return [f"{machine_of(record)}.", markdown(SAVING_HEADINGS, rows)]


def race_parts(record: Record) -> list[str]:
    """A race: its command, its machine, its table, and what the arithmetic allows."""
    images = tables.has_images(record)
    if len(record["measured"]) == record["iterations"]:
        extent = "Every AR iteration was measured."
    elif images:
        extent = (
            f"Measured were the AR iterations {', '.join(map(str, record['measured']))}; backbone "
            "calls and denoising steps in between are interpolated, and the image is their sum."
        )
    else:
        extent = f"Rounds: {record['rounds']}."
    parts = [
        f"### {record['shapes']}, batch {record['batch_size']}, {record['iterations']} iterations, "
        f"{record['schedule']} steps",
        f"    {record['command']}",
        f"{machine_of(record)}, {count(record['threads'], 'thread')}. "
        f"{CLOCK_TEXT[record['clock']]} {extent}",
    ]
    if not images:
        return [*parts, markdown(tables.ITERATION_HEADINGS, tables.iteration_rows(record))]
    parts.append(markdown(tables.HEADINGS, tables.race_rows(record)))
    if not record.get("rates") or not record.get("flops_an_image"):
        return parts
    return [
        *parts,
        f"The operations of an image that no exact saving removes are "
        f"{record['flops_an_image'] / 1e9:.0f} GFLOP. At the rate of a large matrix product on the "
        "same machine (fp32 and int8 in ONNX Runtime, bf16 in PyTorch) that is the least time, and "
        "the largest factor, of any implementation in that precision:",
        markdown(tables.FLOOR_HEADINGS, tables.floor_rows(record)),
    ]


def bench_parts(record: Record) -> list[str]:
    """A run of disa-bench: its command, its machine, its table."""
    engines = []
    for engine in record["engines"].values():
        rate = engine["matrix_rate"]
        engines.append(
            f"{engine['runs']}, loaded in {engine['load_seconds']:.2f} s, first image "
            f"{engine['first_image_seconds']:.2f} s after the start of the process"
            + (f", {rate / 1e9:.0f} GFLOP/s in a large product" if rate else "")
        )
    threads = record["threads"] or record["machine"]["cores"]
    return [
        f"### {record['plan']['name']}",
        f"    {record['command']}",
        f"{machine_of(record)}, {count(threads, 'thread')}, {record['bandwidth'] / 1e9:.1f} GB/s. "
        f"{'; '.join(engines)}. {count(record['repeat'], 'draw')} of each variant.",
        markdown(HEADINGS, [row(entry) for entry in record["variants"]]),
    ]


def draw_charts(results: Path, images: Path) -> None:
    """The pictures of the page: seconds an image of every contender, and growth."""
    records = read_results(results)
    races = races_of_images(records)
    if races:
        draw_races(races, images / "benchmarks.png")
    for record in of_kind(records, "growth"):
        growth.draw_growth(record, images / "growth.png")


def draw_races(races: Sequence[Record], path: Path) -> None:
    """Backbone and head of every contender stacked; one panel a race."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [1 + 0.25 * len(record["contenders"]) for record in races]
    figure_, panels = pyplot.subplots(
        len(races),
        1,
        figsize=(8, sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for panel, record in zip(panels[:, 0], races, strict=True):
        names = list(record["contenders"])[::-1]
        results = [record["contenders"][name] for name in names]
        backbone = [result["backbone_seconds_an_image"] for result in results]
        head = [result["head_seconds_an_image"] for result in results]
        panel.barh(names, backbone, label="backbone", color="#4c72b0")
        bars = panel.barh(names, head, left=backbone, label="head", color="#dd8452")
        panel.bar_label(bars, labels=[f" {figure(r['seconds_an_image'])}" for r in results])
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
