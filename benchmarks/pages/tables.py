"""The tables of the measured pages, and the line about the machine above each."""

from collections.abc import Mapping
from typing import Any

from disa.bench.report import HEADINGS, figure, row, steps_of
from disa.tables import markdown

from .. import growth, official_sizes
from ..official import tables

Record = Mapping[str, Any]

COST_HEADINGS = (
    *("model", "steps", "AR iterations", "head calls", "of DiSA", "s", "of DiSA"),
    *("CPU s", "of DiSA", "backbone s", "head s"),
)
HOISTED_HEADINGS = (
    *("model", "computed once", "for", "ms if computed each time", "ms once"),
    *("ms of one in the loop", "share of the loop saved"),
)
SAVING_HEADINGS = ("saving", "before", "after", "milliseconds of CPU time of")


def race(record: Record) -> str:
    """A race: its command, its machine, its table, and its floor if that is known."""
    measured = ", ".join(map(str, record["measured"]))
    every = len(record["measured"]) == record["iterations"]
    parts = [
        f"### {record['shapes']}, batch {record['batch_size']}, {record['iterations']} iterations, "
        f"{record['schedule']} steps, {record['machine']['processor']}",
        f"    {record['command']}",
        f"{machine_of(record)}, {count(record['threads'], 'thread')}. "
        + ("Every AR iteration was measured." if every else f"AR iterations measured: {measured}."),
        markdown(tables.HEADINGS, tables.race_rows(record)),
    ]
    if floors := tables.floor_rows(record):
        operations = f"The floor, {record['flops_an_image'] / 1e9:.0f} GFLOP an image:"
        parts += [operations, markdown(tables.FLOOR_HEADINGS, floors)]
    return "\n\n".join(parts)


def bench(record: Record) -> str:
    """A run of disa-bench: its command, its machine, its table."""
    engines = [
        f"{engine['runs']}, loaded in {engine['load_seconds']:.2f} s, first image "
        f"{engine['first_image_seconds']:.2f} s after the start of the process, "
        f"{engine['matrix_rate'] / 1e9:.0f} GFLOP/s in a large matmul"
        for engine in record["engines"].values()
    ]
    threads = count(record["threads"] or record["machine"]["cores"], "thread")
    return (
        f"### {record['plan']['name']}\n\n    {record['command']}\n\n"
        f"{machine_of(record)}, {threads}, {record['bandwidth'] / 1e9:.1f} GB/s. "
        f"{'; '.join(engines)}. Batches of each variant: {record['repeat']}.\n\n"
        f"{markdown(HEADINGS, [row(entry) for entry in record['variants']])}"
    )


def savings(record: Record) -> str:
    """MAR's exact savings."""
    rows = [
        [entry["saving"], figure(entry["before"]), figure(entry["after"]), entry["of"]]
        for entry in record["entries"]
    ]
    return f"{machine_of(record)}.\n\n{markdown(SAVING_HEADINGS, rows)}"


def grown(record: Record) -> str:
    """How the cost grows."""
    about = f"{machine_of(record)}. Batches of each point: {record['repeat']}."
    return f"{about}\n\n{markdown(growth.HEADINGS, growth.growth_rows(record))}"


def costs(record: Record) -> str:
    """The cost of DiSA's steps and of fixed steps, in every family."""
    rows = []
    for model, entry in record["entries"].items():
        disa = _costs(entry["variants"][0])
        for variant in entry["variants"]:
            cells = [model, _schedule(variant), str(variant["iterations"])]
            for value, least in zip(_costs(variant), disa, strict=True):
                cells += [figure(value), f"{value / least:.2f}x"]
            rows.append([*cells, *(figure(variant["parts"][p]) for p in ("backbone", "head"))])
    return f"{machines_of(record)}\n\n{markdown(COST_HEADINGS, rows, left=2)}"


def _schedule(variant: Record) -> str:
    steps, fixed, _ = steps_of(variant).partition(" fixed")
    return f"fixed {steps.partition(':')[0]}" if fixed else f"DiSA {steps}"


def _costs(variant: Record) -> tuple[float, float, float]:
    """Head calls, seconds and CPU seconds."""
    seconds = variant["seconds_an_image"]["median"]
    return variant["head_calls"], seconds, variant["cpu_seconds_an_image"]


def hoisted(record: Record) -> str:
    """What is computed once before a loop, and what it would cost inside."""
    rows = []
    for model, entry in record["entries"].items():
        for found in entry["hoisted"]:
            each, turn = found["turns"] * found["each"], found["turn"]
            inside = each + found["turns"] * turn if turn else None
            saved = f"{(each - found['once']) / inside:.1%}" if inside else "-"
            milliseconds = map(figure, (each, found["once"], turn))
            rows.append([model, found["what"], found["loop"], *milliseconds, saved])
    return f"{machines_of(record)}\n\n{markdown(HOISTED_HEADINGS, rows, left=3)}"


def sizes(record: Record) -> str:
    """Export and a short run of every official size."""
    rows = official_sizes.size_rows(record["entries"])
    return f"{machines_of(record)}\n\n{markdown(official_sizes.HEADINGS, rows, left=2)}"


def served(entry: Record, first: str | None = None) -> str:
    """A line of the tables in docs/serving.md; `first` replaces the load in its first cell."""
    rate, within = entry["images_a_second"], entry["within_target"]
    p50, p99, partial = (
        f"{entry[name]:.1f}x" if entry[name] < 100 else f"{entry[name]:.0f}x"
        for name in ("slowdown_p50", "slowdown_p99", "first_partial_p50")
    )
    cells = [first or f"{entry['load']:.0%}", entry["policy"], p50, p99, f"{within:.0%}", partial]
    return f"| {' | '.join(cells)} | {rate:{'.2f' if rate >= 1 else '.3f'}} |"


def hardware(record: Record) -> str:
    """The machine and the versions of what ran on it."""
    machine, versions = record["machine"], record["versions"]
    memory = f"{machine['memory_bytes'] / (1 << 30):.0f} GiB"
    packages = [f"{name} {versions[name]}" for name in ("onnxruntime", "torch") if name in versions]
    return ", ".join([machine["processor"], f"{machine['cores']} cores", memory, *packages])


def machine_of(record: Record) -> str:
    """The machine, how busy it was, and when."""
    machine = record["machine"]
    return (
        f"{hardware(record)}, {record['date']}, load average {machine['load']} before and "
        f"{machine['load_after']} after"
    )


def machines_of(record: Record) -> str:
    """The same of a record whose entries were measured one after the other."""
    entries = record["entries"].values()
    days = sorted({entry["date"][:10] for entry in entries})
    loads = [entry.get("machine", entry)["load"] for entry in entries]
    return (
        f"{hardware(record)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}, load average "
        f"{min(loads)} to {max(loads)} at the start of each model."
    )


def count(number: int, what: str) -> str:
    """`2 threads`, `1 thread`."""
    return f"{number} {what}" + ("" if number == 1 else "s")
