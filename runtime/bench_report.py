"""Records of disa-bench: files, tables, and the comparison of two."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..errors import DisaError
from ..files import written_whole
from .bench_measure import FORMAT

MIB = 1 << 20
SAME = ("engine", "batch_size", "iterations", "options")
"""What two measurements have in common that are compared."""


def read_record(path: Path) -> dict[str, Any]:
    """A record that disa-bench wrote; DisaError for anything else."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DisaError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{path} is not JSON ({error}): give a file of disa-bench") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DisaError(f"{path} is no record of this disa-bench: give a file made with --json")
    try:
        for entry in record["variants"]:
            _key(entry)
            float(entry["seconds_an_image"]["median"])
        str(record["machine"]["processor"]), str(record["plan"]["name"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DisaError(f"{path} is damaged: it lacks {error}; measure again") from error
    return record


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record, whole or not at all."""
    write_text(json.dumps(record, indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file, whole or not at all."""
    try:
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise DisaError(f"{path} cannot be written: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """DisaError if a record cannot be put at `path`, before anything is measured."""
    if path.is_dir():
        raise DisaError(f"{path} cannot be written: it is a folder: give the name of a file in it")
    try:
        with TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise DisaError(
            f"{path} cannot be written: {error.strerror or error}: give a file in another folder"
        ) from error


def summary(record: Mapping[str, Any]) -> str:
    """A record for people."""
    machine = record["machine"]
    lines = [
        f"{record['plan']['name']} on {machine['processor']}, {machine['cores']} cores, "
        f"load {machine['load']} before and {machine['load_after']} after, "
        f"{record['bandwidth'] / 1e9:.1f} GB/s"
    ]
    for name, engine in record["engines"].items():
        rate = engine["matrix_rate"]
        lines.append(
            f"{name}: {engine['runs']}, loaded in {engine['load_seconds']:.2f} s, first image "
            f"after {engine['first_image_seconds']:.2f} s"
            + (f", {rate / 1e9:.0f} GFLOP/s in a large product" if rate else "")
        )
    return "\n".join([*lines, "", table(HEADINGS, [row(entry) for entry in record["variants"]])])


HEADINGS = (
    *("engine", "batch", "iterations", "steps", "s/image", "p90", "CPU s", "images/s"),
    *("backbone", "head", "decoder", "host", "head calls", "peak MiB", "floor", "near"),
)


def row(entry: Mapping[str, Any]) -> list[str]:
    """The cells of a variant under HEADINGS."""
    seconds, parts, least = entry["seconds_an_image"], entry["parts"], entry["floor"]
    peak = entry["peak_memory_bytes"]
    return [
        entry["engine"],
        str(entry["batch_size"]),
        str(entry["iterations"]),
        steps_of(entry),
        figure(seconds["median"]),
        figure(seconds["p90"]),
        figure(entry["cpu_seconds_an_image"]),
        figure(entry["images_a_second"]),
        *(figure(parts.get(part)) for part in ("backbone", "head", "decoder", "host")),
        str(entry["head_calls"]),
        f"{peak / MIB:.0f}" if peak else "-",
        figure(least["seconds_an_image"] if least else None),
        f"{entry['near_floor']:.0%}" if entry["near_floor"] else "-",
    ]


def steps_of(entry: Mapping[str, Any]) -> str:
    """The steps of a variant, with the strategy where it is not the usual one."""
    options = entry["options"]
    strategy = options.get("strategy", "linear")
    return str(options.get("steps")) + ("" if strategy == "linear" else f" {strategy}")


def figure(value: float | None) -> str:
    """Three significant digits; a dash for what is not known."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns, aligned to the right."""
    cells = [headings, *rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(headings))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Old and new seconds an image of the variants that both records have.

    Raises DisaError if they have none in common.
    """
    before = {_key(entry): entry for entry in old["variants"]}
    rows = []
    for entry in new["variants"]:
        if _key(entry) in before:
            was = float(before[_key(entry)]["seconds_an_image"]["median"])
            now = entry["seconds_an_image"]["median"]
            rows.append(
                [
                    *(entry["engine"], str(entry["batch_size"]), str(entry["iterations"])),
                    *(steps_of(entry), figure(was), figure(now), f"{was / now:.2f}x"),
                ]
            )
    if not rows:
        raise DisaError("the two records have no variant in common: nothing can be compared")
    lines = []
    if old["machine"]["processor"] != new["machine"]["processor"]:
        lines.append(f"the old record is of another machine: {old['machine']['processor']}")
    if old["plan"]["name"] != new["plan"]["name"]:
        lines.append(f"the old record is of another plan: {old['plan']['name']}")
    headings = ("engine", "batch", "iterations", "steps", "old s/image", "new s/image", "speed-up")
    return "\n".join([*lines, table(headings, rows)])


def _key(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry[name] for name in SAME], sort_keys=True)
