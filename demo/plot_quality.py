"""Plots head rows against Fréchet distance: `python -m demo.plot_quality outputs/evaluation.json`.

Several files of demo.evaluate are plotted together if their runs are comparable.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from disa.commands.command import DisaCommand
from disa.errors import DisaError

from .pages import new_figure, save_figure

STYLES = {
    "constant": ("tab:red", "o-"),
    "linear": ("tab:blue", "o-"),
    "cosine": ("tab:orange", "s-"),
    "two-stage": ("tab:green", "^-"),
    "fitted": ("black", "*-"),
    "adaptive": ("tab:purple", "D-"),
    "fixed": ("tab:gray", "x-"),
}
COMPARED = ("options", "num", "batch_size", "real")
"""Fields that must be equal in all files for their rows to be comparable."""


def read_rows(paths: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of all files, each schedule once, and the content of the first file.

    Raises:
        DisaError: a file is not from demo.evaluate, or has other options.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    first: dict[str, Any] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text())
            for row in content["rows"]:
                float(row["head_rows_per_image"]), float(row["frechet_distance"])
                rows.setdefault((row["plan"], row["schedule"]), row)
            float(content["real"]["distance"]), int(content["num"])
            first = first or content
            other = [name for name in COMPARED if content[name] != first[name]]
        except OSError as error:
            raise DisaError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DisaError(f"{path} was not written by demo.evaluate: {error!r}") from error
        if other:
            raise DisaError(
                f"{path} cannot be compared with {paths[0]}: other {' and '.join(other)}"
            )
    return list(rows.values()), first


def kind_of(schedule: str) -> str:
    """The strategy of a schedule, such as `linear` of `linear 50:5`."""
    return schedule.split()[0]


def label_of(schedule: str) -> str:
    """The label of a point: the steps, or the tolerance, without a file's folder."""
    kind, *rest = schedule.split()
    return Path(rest[0]).name.removesuffix(".json") if kind == "fitted" else " ".join(rest)


def plot(rows: Iterable[dict[str, Any]], real: float, images: int, path: Path) -> None:
    """Plot quality against cost, a line for each kind of schedule, as a PNG file.

    Args:
        real: Fréchet distance of real test images.
        images: number of images of each schedule.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: float(row["head_rows_per_image"])):
        by_kind.setdefault(kind_of(row["schedule"]), []).append(row)
    for kind, points in by_kind.items():
        color, style = STYLES.get(kind, (None, "o-"))
        x = [row["head_rows_per_image"] for row in points]
        y = [row["frechet_distance"] for row in points]
        axes.plot(x, y, style, color=color, label=kind, linewidth=1, markersize=6)
        for row, place in zip(points, zip(x, y, strict=True), strict=True):
            axes.annotate(
                label_of(row["schedule"]),
                place,
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color=color,
            )
    axes.margins(0.12)
    axes.set(
        title=f"{images} images of each schedule; real test images have a distance of {real:.2f}",
        xlabel="rows of the head for an image",
        ylabel="Fréchet distance to the training images",
    )
    axes.legend()
    save_figure(figure, path)


@click.command(cls=DisaCommand)
@click.argument("evaluations", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/images/quality.png")
)
def main(evaluations: tuple[Path, ...], output: Path) -> None:
    """Plot quality against cost of the schedules in EVALUATIONS, JSON files of demo.evaluate."""
    rows, content = read_rows(evaluations)
    plot(rows, float(content["real"]["distance"]), int(content["num"]), output)
    click.echo(f"written: {output}")


if __name__ == "__main__":
    main()
