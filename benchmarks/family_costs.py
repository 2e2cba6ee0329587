"""Generates with DiSA's steps and with fixed steps, for every family: head calls and seconds.

    python -m benchmarks.family_costs -o benchmarks/results/family_costs.json
    python -m benchmarks.family_costs --only xar_b,harmon_0.5b --repeat 3

The weights are random. The variants of a model are measured in turn. Entries of the record that are
not measured again are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from disa.bench.measure import measure
from disa.bench.report import check_writable, figure
from disa.bench.variant import Variant
from disa.commands.command import DisaCommand
from disa.exporter.random_weights import SIZES, random_plan
from disa.progress import progress_bar
from disa.runtime.families.registry import OPTIONS
from disa.runtime.stats import LOOP_PARTS
from disa.tables import table

from .records import Record, choose, read_entries, write_entries

KIND = "family_costs"
DISA: Mapping[str, Any] = {}
"""The plan's defaults, which are those that DiSA published for the model."""


def fixed(steps: int) -> dict[str, Any]:
    """The same steps in every AR iteration."""
    return {"steps": f"{steps}:{steps}", "strategy": "fixed"}


COMPARED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "mar_b": (DISA, fixed(50), fixed(100)),
    "flowar_s": (DISA, fixed(25), fixed(50)),
    "flowar_l": (DISA, fixed(25), fixed(50)),
    "xar_b": (DISA, fixed(50)),
    "harmon_0.5b": (DISA, fixed(50), fixed(100)),
}
"""The sampling options of each model's variants, DiSA's first."""
SMALLER: Mapping[str, Mapping[str, Any]] = {"harmon_0.5b": {"size": "256"}}
"""Options that make a model's images smaller than usual, to save time on a CPU."""
HEADINGS = (
    *("model", "steps", "AR iterations", "head calls", "of DiSA", "s", "of DiSA"),
    *("CPU s", "of DiSA", *(f"{part} s" for part in LOOP_PARTS)),
)


@click.command(cls=DisaCommand)
@click.option("--only", help="Models to take, such as xar_b,harmon_0.5b; all by default.")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True)
@click.option("--engine", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "--iterations",
    type=click.IntRange(1),
    help="AR iterations, where a family lets them be chosen.",
)
@click.option(
    "--plans", type=click.Path(path_type=Path), help="Folder where plans are made and kept."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The record.")
def main(
    only: str | None,
    repeat: int,
    engine: str,
    threads: int | None,
    iterations: int | None,
    plans: Path | None,
    output: Path | None,
) -> None:
    """Measure the cost of DiSA's steps and of fixed steps, one image at a time."""
    chosen = choose(only, list(COMPARED))
    entries: dict[str, Record] = {}
    if output:
        check_writable(output)
        entries = read_entries(output, KIND)
    for model in chosen:
        plan = random_plan(model, plans, lambda stage: click.echo(f"  {stage}", err=True))
        options = [Variant(engine, 1, found) for found in variants(model, iterations)]
        with progress_bar(len(options) * repeat, model, "image") as advance:
            entries[model] = compare(plan, options, repeat, threads, advance)
        click.echo(table(HEADINGS, cost_rows({model: entries[model]})))
        if output:
            write_entries(output, KIND, entries, list(COMPARED))


def variants(model: str, iterations: int | None) -> list[dict[str, Any]]:
    """The sampling options of a model's variants."""
    shared = dict(SMALLER.get(model, {}))
    known = {field.name for field in fields(OPTIONS[SIZES[model]])}
    if iterations and "num_iterations" in known:
        shared["num_iterations"] = iterations
    return [{**shared, **options} for options in COMPARED[model]]


def compare(
    plan: Path,
    chosen: Sequence[Variant],
    repeat: int,
    threads: int | None,
    advance: Callable[[int], object] = lambda count: None,
) -> Record:
    """Measure the variants in turn, as JSON."""
    record = measure(plan, chosen, repeat=repeat, warmup=0, threads=threads, advance=advance)
    kept = ("date", "machine", "threads", "repeat", "engines", "variants")
    return {name: record[name] for name in kept}


def cost_rows(entries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The cells of entries under HEADINGS."""
    rows = []
    for model, entry in entries.items():
        disa = entry["variants"][0]
        for variant in entry["variants"]:
            cells = [model, _steps(variant["options"]), str(variant["iterations"])]
            for value in (_calls, _seconds, _cpu_seconds):
                cells += [figure(value(variant)), f"{value(variant) / value(disa):.2f}x"]
            parts = variant["parts"]
            cells += [figure(parts.get(part)) for part in LOOP_PARTS]
            rows.append(cells)
    return rows


def _calls(variant: Mapping[str, Any]) -> float:
    return float(variant["head_calls"])


def _seconds(variant: Mapping[str, Any]) -> float:
    return float(variant["seconds_an_image"]["median"])


def _cpu_seconds(variant: Mapping[str, Any]) -> float:
    return float(variant["cpu_seconds_an_image"])


def _steps(options: Mapping[str, Any]) -> str:
    upper = str(options["steps"]).partition(":")[0]
    return f"fixed {upper}" if options["strategy"] == "fixed" else f"DiSA {options['steps']}"


if __name__ == "__main__":
    main()
