import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.pages.__main__ import main

from .made_up import bench, growth, race


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "race.json").write_text(json.dumps(race()))
    (folder / "bench.json").write_text(json.dumps(bench()))
    (folder / "growth.json").write_text(json.dumps(growth()))
    return folder


def make(results: Path) -> tuple[str, Path]:
    docs = results.parent / "docs"
    options = ["--only", "benchmarks", "--results", str(results), "--docs", str(docs)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    return (docs / "benchmarks.md").read_text(), docs / "images" / "benchmarks.png"


def test_the_page_holds_every_figure(results: Path) -> None:
    (results / "notes.md").write_text("## Notes\n\nA note.\n")
    page, chart = make(results)
    for figure in (
        "60",
        "10.00x",
        "5.00x",
        "7.25",
        "12.5",
        "55%",
        "Abacus",
        "load average 0.5",
        "A note.",
        "| denoising steps | 77 | 0.5 | 7 | 14 |",
        "| bf16 | 2000 | 2 | 30.00x | 15.00x |",
    ):
        assert figure in page
    assert "CPU time of the process" in page
    assert "iterations 0, 32, 63; backbone calls" in page
    assert "disa-bench made-up" in page
    with Image.open(chart) as image:
        assert image.size[0] > 500
    assert chart.stat().st_size < 200_000
    assert chart.with_name("growth.png").exists()


def test_without_records(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--results", str(tmp_path)])
    assert result.exit_code == 1
    assert "there are no records" in result.output
