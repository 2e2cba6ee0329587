"""Makes docs/benchmarks.md and docs/families.md, and their pictures, from benchmarks/results.

python -m benchmarks.pages
python -m benchmarks.pages --only families
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from disa.bench.report import write_text
from disa.commands.command import DisaCommand

from ..records import RESULTS, choose
from . import benchmarks, families

DOCS = Path(__file__).parents[2] / "docs"
PAGES: Mapping[str, Callable[[Path], str]] = {
    "benchmarks": benchmarks.page,
    "families": families.page,
}


@click.command(cls=DisaCommand)
@click.option("--only", help=f"Pages to make, of {', '.join(PAGES)}; all by default.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS)
def main(only: str | None, results: Path, docs: Path) -> None:
    """Make the measured pages and their pictures from the records."""
    (docs / "images").mkdir(parents=True, exist_ok=True)
    for name in choose(only, list(PAGES)):
        write_text(PAGES[name](results), docs / f"{name}.md")
        if name == "benchmarks":
            benchmarks.draw_charts(results, docs / "images")


if __name__ == "__main__":
    main()
