"""Writes the page about approximations from the results of `demo.approximations`.

`python -m demo.approximations_page` writes docs/approximations.md and its plot.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from disa.commands.command import DisaCommand
from disa.tables import markdown

from .approximations import RESULTS
from .pages import fill_placeholders, new_figure, save_figure

TIMES = RESULTS.with_name("approximation_times.json")
"""A shorter run of the same variants without interruption, whose times count."""
TEMPLATE = Path(__file__).with_name("approximations_page.md")
HEADINGS = ("images by", "ms an image", "backbone", "head", "times as fast", "accuracy", "distance")


def table(content: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """A table with the time and quality of every variant; the first one is the baseline.

    Args:
        times: the record whose times count.
    """
    timed, num = rows_of(times), times["num"]
    first = timed[content["rows"][0]["name"]]["seconds"]
    rows = []
    for row in content["rows"]:
        costs = timed[row["name"]]
        parts = [costs[part] for part in ("seconds", "backbone_seconds", "head_seconds")]
        rows.append(
            [
                row["name"],
                *(f"{1000 * seconds / num:.1f}" for seconds in parts),
                f"{first / costs['seconds']:.2f}",
                f"{row['accuracy']:.1%}",
                f"{row['frechet_distance']:.2f}",
            ]
        )
    return markdown(HEADINGS, rows)


def rows_of(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The variants of a record by their names."""
    return {row["name"]: row for row in content["rows"]}


def plot(content: Mapping[str, Any], times: Mapping[str, Any], path: Path) -> None:
    """Plot the time of an image against the distance, a point for each variant, as a PNG file.

    Args:
        times: the record whose times count.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    timed = rows_of(times)
    for index, row in enumerate(content["rows"]):
        seconds = timed[row["name"]]["seconds"] / times["num"]
        point = (1000 * seconds, row["frechet_distance"])
        axes.plot(*point, "o")
        # Neighbours in the list are often neighbours in the plot.
        offset = (5, -10 if index % 2 else 5)
        axes.annotate(row["name"], point, offset, textcoords="offset points", fontsize=8)
    axes.margins(0.2)
    axes.set(xlabel="ms for an image", ylabel="Fréchet distance", xlim=(0, None))
    save_figure(figure, path)


def page(content: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """The text of the page."""
    threads = times["threads"]
    machine = times["machine"]["processor"]
    parts = {
        "count": f"{content['num']:,}",
        "machine": f"{threads} thread{'s' if threads > 1 else ''} of an {machine}",
        "timed": f"{times['num']:,}",
        "table": table(content, times),
    }
    return fill_placeholders(TEMPLATE, parts)


@click.command(cls=DisaCommand)
@click.option("--results", type=click.Path(path_type=Path, exists=True), default=RESULTS)
@click.option("--times", type=click.Path(path_type=Path, exists=True), default=TIMES)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/approximations.md")
)
def main(results: Path, times: Path, output: Path) -> None:
    """Write the page about approximations, and its plot."""
    content, timed = json.loads(results.read_text()), json.loads(times.read_text())
    plot(content, timed, output.parent / "images" / "approximations.png")
    output.write_text(page(content, timed))
    click.echo(f"written: {output}")


if __name__ == "__main__":
    main()
