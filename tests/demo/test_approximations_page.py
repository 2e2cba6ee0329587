import json
from pathlib import Path
from typing import Any

import pytest

from demo import approximations_page


@pytest.fixture
def content() -> dict[str, Any]:
    row = {"backbone_seconds": 3.0, "head_seconds": 2.0, "accuracy": 0.9}
    return {
        "machine": {"processor": "Some CPU"},
        "num": 1000,
        "threads": 1,
        "rows": [
            {**row, "name": "exact", "seconds": 8.0, "frechet_distance": 3.5},
            {**row, "name": "bf16", "seconds": 4.0, "frechet_distance": 3.61},
        ],
    }


def test_times_are_compared_with_the_first_line(content: dict[str, Any]) -> None:
    lines = approximations_page.table(content, content).splitlines()
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")] == [
        *("bf16", "4.0", "3.0", "2.0"),
        *("2.00", "90.0%", "3.61"),
    ]


def test_times_are_those_of_the_run_that_was_not_interrupted(content: dict[str, Any]) -> None:
    costs = {"backbone_seconds": 0.1, "head_seconds": 0.2}
    rows = [{**costs, "name": "bf16", "seconds": 0.5}, {**costs, "name": "exact", "seconds": 2.0}]
    lines = approximations_page.table(content, {"num": 100, "rows": rows}).splitlines()
    assert [cell.strip() for cell in lines[-1].strip("|").split("|")] == [
        *("bf16", "5.0", "1.0", "2.0"),
        *("4.00", "90.0%", "3.61"),
    ]


def test_the_picture_is_written(content: dict[str, Any], tmp_path: Path) -> None:
    approximations_page.plot(content, content, tmp_path / "images" / "a.png")
    assert (tmp_path / "images" / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_what_was_measured() -> None:
    content = json.loads(approximations_page.RESULTS.read_text())
    times = json.loads(approximations_page.TIMES.read_text())
    text = approximations_page.page(content, times)
    assert (Path(__file__).parents[2] / "docs" / "approximations.md").read_text() == text
