"""The tables and the picture of docs/serving.md, whose text is written by hand.

python -m benchmarks.pages.serving benchmarks/results/serving_simulation.json -o x.png
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from disa.commands.command import DisaCommand
from disa.files import read_bytes

MAX_RECORD_BYTES = 16 << 20


@click.command(cls=DisaCommand)
@click.argument("record", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the picture goes.")
def main(record: Path, output: Path | None) -> None:
    """Print the table of RECORD, and draw its slowdowns."""
    entries = json.loads(read_bytes(record, MAX_RECORD_BYTES))["entries"]
    click.echo("| load | policy | p50 | p99 | within 3x | first preview | images/s |")
    click.echo("|---:|---|---:|---:|---:|---:|---:|\n" + "\n".join(map(line, entries)))
    if output is not None:
        draw(entries, output)


def line(entry: Mapping[str, Any], first: str | None = None) -> str:
    """A line of the table; in its first cell the load, or what else is told apart."""
    rate = entry["images_a_second"]
    return (
        f"| {first or format(entry['load'], '.0%')} | {entry['policy']} "
        f"| {_times(entry['slowdown_p50'])} | {_times(entry['slowdown_p99'])} "
        f"| {entry['within_target']:.0%} | {_times(entry['first_partial_p50'])} "
        f"| {rate:{'.2f' if rate >= 1 else '.3f'}} |"
    )


def _times(value: float) -> str:
    return f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def draw(entries: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Median and 99th percentile of each policy at each load, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    loads = sorted({entry["load"] for entry in entries})
    policies = list(dict.fromkeys(entry["policy"] for entry in entries))
    figure, axes = pyplot.subplots(figsize=(7.5, 3.2), layout="constrained")
    width = 0.8 / len(policies)
    for place, policy in enumerate(policies):
        mine = [next(e for e in entries if (e["load"], e["policy"]) == (x, policy)) for x in loads]
        left = [index - 0.4 + (place + 0.5) * width for index in range(len(loads))]
        bars = axes.bar(left, [entry["slowdown_p99"] for entry in mine], 0.9 * width, alpha=0.45)
        color = bars.patches[0].get_facecolor()[:3]
        heights = [entry["slowdown_p50"] for entry in mine]
        axes.bar(left, heights, 0.9 * width, color=color, label=policy)
    axes.set_yscale("log")
    axes.axhline(3, color="gray", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(loads)), [f"{load:.0%} load" for load in loads])
    axes.set_ylabel("seconds / unloaded (median, p99 pale)")
    axes.legend(fontsize=8, ncols=2)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
