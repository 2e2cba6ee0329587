import json
from pathlib import Path

import pytest

from benchmarks import scale
from benchmarks.records import RESULTS

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_what_a_unit_costs_beside_generating() -> None:
    row = {
        "seconds": 14.0,
        "first_unit_seconds": 4.0,
        "generating_seconds": 16.5,
        "units": 11,
        "images": 88,
        "batch_size": 8,
        "workers": 2,
        "peak_bytes": 300 << 20,
    }
    assert scale.cells("two", row) == ["two", "8.00", "14.0", "4.0", "500", "300"]


def test_a_run_is_timed(pixel_plan: Path, tmp_path: Path) -> None:
    options = ["--threads", "{cores}", "--engine", "cpu", "--iterations", "4", "--steps", "4:2"]
    row = scale.timed_run(pixel_plan, tmp_path / "out", options, 6, 2)
    assert row["units"] == 3
    assert row["workers"] == 1
    assert row["seconds"] >= row["first_unit_seconds"] > 0
    assert row["peak_bytes"] > 10 << 20
    assert json.loads((tmp_path / "out" / "run.json").read_text())["complete"]
    with pytest.raises(scale.DisaError, match="failed"):
        scale.timed_run(pixel_plan, tmp_path / "x", ["--cfg", "0"], 6, 2)


def test_the_page_shows_the_record() -> None:
    record = json.loads((RESULTS / "scale.json").read_text())
    assert list(record["variants"]) == list(scale.VARIANTS)
    rows = [scale.cells(name, row) for name, row in record["variants"].items()]
    shown = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and line.count("|") == len(scale.HEADINGS) + 1
    ]
    assert [row for row in shown if row[0] in scale.VARIANTS] == rows
