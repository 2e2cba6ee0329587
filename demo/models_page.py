"""Writes the page about the demo's models from the measurements of `demo.observe`.

`python -m demo.models_page` reads demo/results/observations/FAMILY.json and writes
docs/demo-models.md and its plot.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from disa.commands.command import DisaCommand
from disa.errors import DisaError

from .observe import RESULTS, WEIGHTS
from .pages import fill_placeholders, new_figure, save_figure
from .plot_quality import STYLES, kind_of, label_of

Observations = Mapping[str, Any]
"""The measurements of one family, or of the autoencoder, as read from its JSON file."""

TEMPLATE = Path(__file__).with_name("models_page.md")
NAMES = {"mar": "MAR", "harmon": "Harmon", "flowar": "FlowAR", "xar": "xAR"}
SIGNALS = {
    "predictability": "error of prediction",
    "variance": "variance",
    "curvature": "curvature",
}
FALLS = 0.8
"""A signal falls if its last value is at most this share of its first."""


def read(folder: Path) -> dict[str, Observations]:
    """Read the measurements, by family; families without measurements are left out.

    Raises:
        DisaError: no family was measured, or a file is damaged.
    """
    observed = {}
    for family in NAMES:
        path = folder / f"{family}.json"
        try:
            observed[family] = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DisaError(f"{path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise DisaError(f"{path} is not valid JSON: {error}") from error
    if not observed:
        raise DisaError(f"{folder} has no observations: run `python -m demo.observe`")
    return observed


def read_vae(folder: Path) -> Observations | None:
    """Read the measurements of the autoencoder; None if there are none."""
    path = folder / "vae.json"
    return json.loads(path.read_text()) if path.exists() else None


def autoencoder_line(vae: Observations | None) -> str:
    """A sentence about the autoencoder's reconstruction of test images."""
    if vae is None:
        return "Not measured yet."
    return (
        f"The autoencoder's reconstructions of {vae['images']:,} test images have a peak "
        f"signal-to-noise ratio of {vae['psnr']:.1f} dB, a Fréchet distance of "
        f"{vae['distance']:.2f} and an accuracy of {vae['accuracy']:.1%}. A model that uses it "
        "cannot be expected to have a smaller distance."
    )


def ends(means: list[float]) -> tuple[float, float]:
    """Mean of the first and of the last quarter of the AR iterations, at least one of each."""
    quarter = max(1, len(means) // 4)
    return float(np.mean(means[:quarter])), float(np.mean(means[-quarter:]))


def signal_table(observed: Mapping[str, Observations]) -> str:
    """A table with each signal's change over the AR iterations, and the fitted steps of each."""
    lines = [
        f"| family | AR iterations | images | {' | '.join(SIGNALS.values())} | fitted steps |",
        f"|---|---:|---:{'|---:' * len(SIGNALS)}|---|",
    ]
    for family, content in observed.items():
        if "signals" not in content:
            continue
        measured = content["signals"]
        cells = []
        for name in SIGNALS:
            first, last = ends(measured["signals"][name]["mean"])
            trend = "falls" if last <= FALLS * first else "rises" if last > first else "stays"
            cells.append(f"{first:.3f} to {last:.3f}, {trend}")
        iterations = len(measured["signals"]["variance"]["mean"])
        fitted = ", ".join(map(str, measured["steps"]))
        cells = [NAMES[family], str(iterations), str(measured["images"]), *cells, fitted]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def schedule_table(content: Observations | None) -> str:
    """A table with the cost and quality of every schedule of a family."""
    if content is None:
        return "Not measured yet."
    evaluated = content["schedules"]
    lines = [
        "| denoising steps | images | head rows an image | CPU s | accuracy | Fréchet distance |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {name_of(row['schedule'])} "
        f"| {row['images']:,} | {row['head_rows_per_image']:,.0f} | {cpu_seconds(row)} "
        f"| {row['accuracy']:.1%} "
        f"| {row['frechet_distance']:.2f} |"
        for row in evaluated["rows"]
    ]
    real = evaluated["real"]
    lines.append(f"| *real test images* | | | | {real['accuracy']:.1%} | {real['distance']:.2f} |")
    return "\n".join(lines)


def cpu_seconds(row: Observations) -> str:
    """CPU time of all images of a schedule; empty if it was not measured."""
    return f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else ""


def name_of(schedule: str) -> str:
    """The kind of a schedule and its steps, without the path of a fitted one."""
    kind = kind_of(schedule)
    return kind if kind == "fitted" else f"{kind} {label_of(schedule)}"


def precision_table(observed: Mapping[str, Observations]) -> str:
    """A table with the quality of every family in every precision, or why it was refused."""
    lines = [
        "| family | precision | computed by | accuracy | Fréchet distance |",
        "|---|---|---|---:|---:|",
    ]
    for family, content in observed.items():
        if "precisions" not in content:
            continue
        schedules, precisions = content["schedules"], content["precisions"]
        (schedule,) = {row["schedule"] for row in precisions["rows"]}
        plain = [row for row in schedules["rows"] if row["schedule"] == schedule]
        engines = schedules["engine"] | precisions["engine"]
        lines += [
            f"| {NAMES[family]} | {Path(row['plan']).stem} | {engine_name(engines[row['plan']])} "
            f"| {row['accuracy']:.1%} | {row['frechet_distance']:.2f} |"
            for row in [*plain, *precisions["rows"]]
        ]
        lines += [
            f"| {NAMES[family]} | {precision} | refused: {why} | | |"
            for precision, why in content["refused"].items()
        ]
    return "\n".join(lines)


def engine_name(sessions: str) -> str:
    """What runs the graphs, from the descriptions of their sessions; versions are left out."""
    names = [re.sub(r" [0-9.]+", "", name) for name in sessions.split("; ")]
    first, *others = dict.fromkeys(names)
    engine = first.rpartition(" CPU ")[0] + " CPU "
    return ", ".join([first, *(name.removeprefix(engine) for name in others)])


def summary_table(observed: Mapping[str, Observations]) -> str:
    """A table with the quality of each family with its default schedule."""
    lines = [
        "| family | weights | images | accuracy | Fréchet distance |",
        "|---|---:|---:|---:|---:|",
    ]
    for family, content in observed.items():
        row = next(
            row for row in content["schedules"]["rows"] if kind_of(row["schedule"]) == "linear"
        )
        size = (WEIGHTS / f"fashion_{family}.pth").stat().st_size
        lines.append(
            f"| {NAMES[family]} | {size / 1e6:.1f} MB | {row['images']:,} "
            f"| {row['accuracy']:.1%} | {row['frechet_distance']:.2f} |"
        )
    return "\n".join(lines)


def plot(observed: Mapping[str, Observations], path: Path) -> None:
    """Plot the signals, and below them quality against cost, in a column for each family (PNG).

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    figure = new_figure(16, 7.5)
    for column, (family, content) in enumerate(observed.items()):
        above, below = (
            figure.add_subplot(2, len(observed), 1 + column + line * len(observed))
            for line in (0, 1)
        )
        if "signals" in content:
            plot_signals(above, content["signals"])
        above.set_title(NAMES[family])
        plot_tradeoff(below, content["schedules"]["rows"])
    save_figure(figure, path, dpi=80)


def plot_signals(axes: Any, measured: Observations) -> None:
    """Plot the signals over the AR iterations, with their 95 % intervals."""
    for name, title in SIGNALS.items():
        mean = np.array(measured["signals"][name]["mean"])
        half_width = np.array(measured["signals"][name]["half_width"])
        iterations = np.arange(1, len(mean) + 1)
        (line,) = axes.plot(iterations, mean, label=title)
        band = (mean - half_width, mean + half_width)
        axes.fill_between(iterations, *band, alpha=0.25, color=line.get_color(), linewidth=0)
    axes.set(xlabel="AR iteration", ylim=(0, None))
    axes.legend(fontsize=8)


def plot_tradeoff(axes: Any, rows: list[Observations]) -> None:
    """Plot head rows of an image against the distance, a line for each kind of schedule."""
    for kind, (color, style) in STYLES.items():
        points = sorted(
            (row["head_rows_per_image"], row["frechet_distance"])
            for row in rows
            if kind_of(row["schedule"]) == kind
        )
        if points:
            axes.plot(*zip(*points, strict=True), style, color=color, label=kind, linewidth=1)
    axes.set(xlabel="head rows an image", ylabel="Fréchet distance", xlim=(0, None))
    axes.legend(fontsize=8)


def page(observed: Mapping[str, Observations], vae: Observations | None) -> str:
    """The text of the page."""
    tables = {
        "summary": summary_table(observed),
        "vae": autoencoder_line(vae),
        "signals": signal_table(observed),
        "precisions": precision_table(observed),
        **{family: schedule_table(observed.get(family)) for family in NAMES},
    }
    return fill_placeholders(TEMPLATE, tables)


@click.command(cls=DisaCommand)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/demo-models.md")
)
def main(results: Path, output: Path) -> None:
    """Write the page about the demo's models, and its plot."""
    observed = read(results)
    plot(observed, output.parent / "images" / "observations.png")
    output.write_text(page(observed, read_vae(results)))
    click.echo(f"written: {output}")


if __name__ == "__main__":
    main()
