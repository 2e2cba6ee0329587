"""Records of disa-bench: files, tables, and the comparison of two."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..checked_json import JSONError, load
from ..errors import DisaError
from ..files import check_replaceable, read_bytes, written_whole
from ..runtime.families.options import canonical_defaults
from ..runtime.stats import MODEL_PARTS
from ..tables import table
from .measure import FORMAT

MIB = 1 << 20
MAX_BYTES = 64 << 20
SAME = ("engine", "batch_size", "iterations", "options")
"""Fields that are equal in two measurements that are compared."""


def read_record(path: Path) -> dict[str, Any]:
    """Read a record of disa-bench.

    Raises:
        DisaError: the file cannot be read, or is not such a record.
    """
    try:
        record = load(read_bytes(path, MAX_BYTES), "the file").item
    except JSONError as error:
        raise DisaError(f"{path}: {error}: give a file of disa-bench") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise DisaError(f"{path} is not a record of this disa-bench: give a file made with --json")
    try:
        for entry in record["variants"]:
            entry["options"] = canonical_defaults(entry["options"])
            _key(entry)
            float(entry["seconds_an_image"]["median"])
        str(record["machine"]["processor"]), _settings(record)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise DisaError(f"{path} is damaged ({error!r}): measure again") from error
    return record


def write_record(record: Mapping[str, Any], path: Path) -> None:
    """Write a record, completely or not at all.

    Raises:
        DisaError: the file cannot be written.
    """
    write_text(json.dumps(record, indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a file, completely or not at all.

    Raises:
        DisaError: it cannot be written.
    """
    try:
        with written_whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise DisaError(f"{path} cannot be written: {error.strerror or error}") from error


def check_writable(path: Path) -> None:
    """Check that a record can be written at `path`, before anything is measured.

    Raises:
        DisaError: it cannot.
    """
    if path.is_dir():
        raise DisaError(f"{path} cannot be written: it is a folder: give the name of a file in it")
    try:
        check_replaceable(path)
        with TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        raise DisaError(
            f"{path} cannot be written: {error.strerror or error}: give a file in another folder"
        ) from error


def summary(record: Mapping[str, Any]) -> str:
    """A record as text for the terminal."""
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
            + (f", {rate / 1e9:.0f} GFLOP/s in a large matmul" if rate else "")
        )
    return "\n".join([*lines, "", table(HEADINGS, [row(entry) for entry in record["variants"]])])


HEADINGS = (
    *("engine", "batch", "iterations", "steps", "s/image", "p90", "CPU s", "images/s"),
    *(*MODEL_PARTS, "host", "head calls", "peak MiB", "floor", "near"),
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
        *(figure(parts.get(part)) for part in (*MODEL_PARTS, "host")),
        str(entry["head_calls"]),
        f"{peak / MIB:.0f}" if peak else "-",
        figure(least["seconds_an_image"] if least else None),
        f"{entry['near_floor']:.0%}" if entry["near_floor"] else "-",
    ]


def steps_of(entry: Mapping[str, Any]) -> str:
    """The denoising steps of a variant, with the strategy unless it is linear."""
    options = entry["options"]
    if schedule := options.get("schedule"):
        return f"fitted {schedule['steps'][0]}:{schedule['steps'][-1]}"
    strategy = options.get("strategy", "linear")
    return str(options.get("steps")) + ("" if strategy == "linear" else f" {strategy}")


def figure(value: float | None) -> str:
    """A number with three significant digits; a dash for None."""
    return "-" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A table with the old and new seconds per image of the variants that both records have.

    Raises:
        DisaError: they have no variant in common.
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
    after = _settings(new)
    lines += [
        f"the old record is of {what}: {value}"
        for what, value in _settings(old).items()
        if what in after and after[what] != value
    ]
    headings = ("engine", "batch", "iterations", "steps", "old s/image", "new s/image", "speed-up")
    return "\n".join([*lines, table(headings, rows)])


def _settings(record: Mapping[str, Any]) -> dict[str, str]:
    """What two records should have in common, besides the machine and the variants."""
    engines = {
        f"another engine for {name}": str(engine["runs"])
        for name, engine in record["engines"].items()
    }
    return {
        "another plan": str(record["plan"]["name"]),
        "a plan in another precision": str(record["plan"]["precision"]),
        "another number of threads": str(record["threads"] or "all"),
        **engines,
    }


def _key(entry: Mapping[str, Any]) -> str:
    return json.dumps([entry[name] for name in SAME], sort_keys=True)
