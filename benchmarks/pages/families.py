"""docs/families.md: what DiSA saves in each family, and every official size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.exporter.random_weights import SIZES
from disa.tables import markdown

from .. import family_costs, family_savings, official_sizes
from ..records import read_record
from .page import hardware, notes

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """A table of the page.

    Attributes:
        kind: of the record, whose file has its name.
        text: what stands before the table.
        rows: the cells of the record's entries under `headings`.
        when: the date and the load of an entry.
        known: names that an entry can have.
        left: columns of words, which are aligned to the left.
    """

    title: str
    kind: str
    text: str
    headings: Sequence[str]
    rows: Callable[[Mapping[str, Entry]], list[list[str]]]
    when: Callable[[Entry], tuple[str, float]]
    known: Sequence[str]
    left: int = 1


def entry_moment(entry: Entry) -> tuple[str, float]:
    """When an entry was measured, and the load of the machine then."""
    return entry["date"], entry["load"]


def bench_moment(entry: Entry) -> tuple[str, float]:
    """The same of an entry that disa-bench's measurement made."""
    return entry["date"], entry["machine"]["load"]


SECTIONS = (
    Section(
        "Steps against fixed steps",
        family_costs.KIND,
        "One image at a time, guided as published, from class or prompt to latents, every AR "
        "iteration measured. `DiSA` is the published schedule of that model, `fixed` takes the "
        "same number of steps in every AR iteration. Variants take turns. Harmon draws 256x256 "
        "here, a quarter of the tokens of its usual 512x512, because of the time that it takes on "
        "a CPU. `CPU s` are those of all threads.",
        family_costs.HEADINGS,
        family_costs.cost_rows,
        bench_moment,
        tuple(family_costs.COMPARED),
        left=2,
    ),
    Section(
        "What is computed once",
        family_savings.KIND,
        "What does not change inside a loop is computed before it. The table says what it would "
        "cost at every turn, what it costs once, and what a turn costs without it; the share is of "
        "the loop with the work inside. The original code, too, keeps the keys and values of what "
        "is finished (xAR's clusters, Harmon's prompt); the rest it computes at every step. One "
        "guided image, one thread, PyTorch, milliseconds of CPU time.",
        family_savings.HEADINGS,
        family_savings.hoisted_rows,
        entry_moment,
        tuple(family_savings.MODELS),
        left=3,
    ),
    Section(
        "Every official size",
        official_sizes.KIND,
        "A checkpoint with random weights in the official layout is exported without a word about "
        "its sizes, its graphs are compared with the fp32 model (`differs by` is the largest "
        "relative error), and one image is drawn in a short run: 4 AR iterations where the family "
        "has a choice, steps 4:2, Harmon at 128x128. GiB are the most that the process had "
        "resident at once, mapped files included.",
        official_sizes.HEADINGS,
        official_sizes.size_rows,
        entry_moment,
        tuple(SIZES),
        left=2,
    ),
)
INTRODUCTION = (
    "# The families, measured\n\n"
    "Made by `python -m benchmarks.pages` from the records in `benchmarks/results`. "
    "All models have random weights of an official size. How each family is split into graphs is "
    "in [Adding a model family](adding-a-family.md); MAR's own measurements are in "
    "[Benchmarks](benchmarks.md)."
)


def page(results: Path) -> str:
    """The page in Markdown. It holds no figure that is not in a record."""
    parts = [part for section in SECTIONS for part in section_parts(section, results)]
    if not parts:
        raise DisaError(f"there are no records of families in {results}: measure them first")
    return "\n\n".join([INTRODUCTION, *parts, *notes(results / "families.md")]) + "\n"


def section_parts(section: Section, results: Path) -> list[str]:
    """Title, command, machine, table; nothing where there is no record."""
    path = results / f"{section.kind}.json"
    record = read_record(path, section.kind)
    if not record or not record["entries"]:
        return []
    entries = record["entries"]
    dates, loads = zip(*[section.when(entry) for entry in entries.values()], strict=True)
    days = sorted({date[:10] for date in dates})
    missing = [name for name in section.known if name not in entries]
    parts = [
        f"## {section.title}",
        f"    python -m benchmarks.{section.kind} -o benchmarks/results/{section.kind}.json",
        section.text,
        f"{hardware(record)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}, load average "
        f"{min(loads)} to {max(loads)} at the start of each model.",
        markdown(section.headings, section.rows(entries), section.left),
    ]
    return [*parts, f"Not measured: {', '.join(missing)}."] if missing else parts
