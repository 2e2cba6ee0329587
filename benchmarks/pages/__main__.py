"""Makes docs/benchmarks.md, docs/families.md and their pictures: `python -m benchmarks.pages`.

A page is the template beside this file with the tables of its records in benchmarks/results.
The text and the tables of docs/serving.md are written by hand; its pictures are made here.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from demo.pages import fill_placeholders
from disa.bench.report import write_text
from disa.commands.command import DisaCommand
from disa.tables import markdown

from ..records import RESULTS
from . import charts, tables
from .tables import Record
from .targets import targets

TEMPLATES = Path(__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
RACES = (
    *("mar_b_64_amx", "mar_b_64_batch_8_amx", "mar_b_16_amx", "mar_b_256_amx"),
    *("harmon_0_5b_amx", "xar_b_amx", "flowar_s_amx"),
    *("mar_b_64", "mar_b_64_batch_8", "mar_b_16", "mar_b_32", "mar_b_256"),
    *("harmon_0_5b", "xar_b", "flowar_s"),
    *("mar_b_64_avx2", "mar_b_64_batch_8_avx2"),
)
PICTURED = (
    *("mar_b_64_amx", "mar_b_64_batch_8_amx", "mar_b_64", "mar_b_64_avx2"),
    *("harmon_0_5b_amx", "xar_b_amx", "flowar_s_amx"),
)
"""The races in the picture of the page."""
BENCH = "disa_bench_mar_b"
TABLES: Mapping[str, Callable[[Record], str]] = {
    BENCH: tables.bench,
    "savings": tables.savings,
    "growth": tables.grown,
    "family_costs": tables.costs,
    "family_savings": tables.hoisted,
    "official_sizes": tables.sizes,
    **dict.fromkeys(RACES, tables.race),
}
"""The records, and what makes the tables of each."""
PAGES = {
    "benchmarks": (*RACES, BENCH, "savings", "growth"),
    "families": ("family_costs", "family_savings", "official_sizes"),
}
"""The made pages, and their records."""
POLICIES = {"serving-simulation": "serving_simulation", "serving-fashion": "serving_fashion_mixed"}


def read(name: str) -> Record:
    """The record of that name."""
    record: Record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def page(name: str) -> str:
    """A made page in Markdown."""
    parts = {record: TABLES[record](read(record)) for record in PAGES[name]}
    if name == "benchmarks":
        parts["targets"] = markdown(*targets([read(race) for race in RACES], read(BENCH)))
    return fill_placeholders(TEMPLATES / f"{name}.md", parts)


@click.command(cls=DisaCommand)
@click.option("--docs", type=click.Path(path_type=Path), default=DOCS)
def main(docs: Path) -> None:
    """Make the measured pages and their pictures from the records."""
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        write_text(page(name), docs / f"{name}.md")
    charts.draw_races([read(race) for race in PICTURED], images / "benchmarks.png")
    charts.draw_growth(read("growth"), images / "growth.png")
    for picture, record in POLICIES.items():
        charts.draw_policies(read(record), images / f"{picture}.png")


if __name__ == "__main__":
    main()
