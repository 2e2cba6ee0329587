"""The pictures of the measured pages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.pages import new_figure, save_figure
from disa.bench.report import figure

from ..growth import TITLES
from .tables import count

Record = Mapping[str, Any]
DPI = 110


def draw_races(races: Sequence[Record], path: Path) -> None:
    """Backbone and head of every contender stacked; one panel a race."""
    heights = [1 + 0.25 * len(record["contenders"]) for record in races]
    picture = new_figure(8, sum(heights))
    panels = picture.subplots(len(races), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, record in zip(panels, races, strict=True):
        names = list(record["contenders"])[::-1]
        results = [record["contenders"][name] for name in names]
        backbone = [result["backbone_seconds_an_image"] for result in results]
        head = [result["head_seconds_an_image"] for result in results]
        panel.barh(names, backbone, label="backbone", color="#4c72b0")
        bars = panel.barh(names, head, left=backbone, label="head", color="#dd8452")
        panel.bar_label(bars, labels=[f" {figure(r['seconds_an_image'])}" for r in results])
        panel.margins(x=0.12)
        panel.set_title(
            f"{record['shapes']}, batch {record['batch_size']}, {record['iterations']} iterations, "
            f"{record['schedule']}: seconds an image on {record['machine']['processor']}, "
            f"{count(record['threads'], 'thread')}",
            fontsize=9,
            loc="right",
        )
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, loc="lower right")
    save_figure(picture, path, DPI)


def draw_growth(record: Record, path: Path) -> None:
    """Seconds against each quantity, and the seconds that the best rate would give."""
    axes = record["axes"]
    picture = new_figure(3 * len(axes), 3)
    panels = picture.subplots(1, len(axes), squeeze=False)[0]
    for panel, (axis, entries) in zip(panels, axes.items(), strict=True):
        values = [entry["value"] for entry in entries]
        rate = max(entry["flops"] / entry["seconds"] for entry in entries)
        least = [entry["flops"] / rate for entry in entries]
        panel.loglog(values, [entry["seconds"] for entry in entries], "o-", label="measured")
        panel.loglog(values, least, "--", color="grey", label="the work, at the panel's best rate")
        panel.set_xlabel(TITLES[axis])
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds a batch")
    panels[0].legend(frameon=False, fontsize=7)
    save_figure(picture, path, DPI)


def draw_policies(record: Record, path: Path) -> None:
    """Median and 99th percentile of each policy at each load, on a logarithmic axis."""
    entries = record["entries"]
    loads = sorted({entry["load"] for entry in entries})
    policies = list(dict.fromkeys(entry["policy"] for entry in entries))
    found = {(entry["load"], entry["policy"]): entry for entry in entries}
    picture = new_figure(7.5, 3.2)
    axes = picture.subplots()
    width = 0.8 / len(policies)
    for place, policy in enumerate(policies):
        mine = [found[load, policy] for load in loads]
        left = [index - 0.4 + (place + 0.5) * width for index in range(len(loads))]
        bars = axes.bar(left, [entry["slowdown_p99"] for entry in mine], 0.9 * width, alpha=0.45)
        color = bars.patches[0].get_facecolor()[:3]
        heights = [entry["slowdown_p50"] for entry in mine]
        axes.bar(left, heights, 0.9 * width, color=color, label=policy)
    axes.set_yscale("log")
    highest = max(entry["slowdown_p99"] for entry in entries)
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000) if tick <= highest]
    axes.set_ylim(1, 1.3 * highest)
    axes.set_yticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.axhline(3, color="gray", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(loads)), [f"{load:.0%} load" for load in loads])
    axes.set_ylabel("seconds / unloaded (median, p99 pale)")
    axes.legend(fontsize=8, ncols=2)
    save_figure(picture, path, DPI)
