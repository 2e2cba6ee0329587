import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from benchmarks.make_page import main, race_command, targets
from benchmarks.official_loop import BF16, FP32

MACHINE = {"processor": "Abacus", "cores": 2, "load": 0.5, "load_after": 0.75}


def race(batch: int = 1, iterations: int = 64, official: float = 60.0) -> dict[str, Any]:
    def result(seconds: float) -> dict[str, Any]:
        return {
            "seconds_an_image": seconds,
            "backbone_seconds_an_image": seconds / 2,
            "head_seconds_an_image": seconds / 2,
            "backbone_seconds_a_call": [seconds / 128],
            "head_seconds_a_step": [0.25],
            "difference": 1e-6,
        }

    return {
        "kind": "official_loop",
        "date": "2000-01-01",
        "machine": MACHINE,
        "versions": {"torch": "2.13"},
        "shapes": "mar_b",
        "batch_size": batch,
        "iterations": iterations,
        "schedule": "linear 50:5",
        "every": 32,
        "measured": [0, 32, iterations - 1],
        "threads": 1,
        "clock": "cpu",
        "contenders": {FP32: result(official), BF16: result(30.0), "disa cpu": result(6.0)},
    }


def bench(name: str = "mar_b-random", peak: int = 110) -> dict[str, Any]:
    return {
        "format": 1,
        "date": "2000-01-01",
        "plan": {"name": name, "bytes": 100},
        "machine": MACHINE,
        "versions": {"onnxruntime": "1.32"},
        "threads": None,
        "bandwidth": 2e10,
        "repeat": 3,
        "warmup": 0,
        "engines": {
            "cpu": {
                "runs": "CPU",
                "load_seconds": 1.5,
                "first_image_seconds": 9.0,
                "matrix_rate": 1e11,
            }
        },
        "variants": [
            {
                "engine": "cpu",
                "batch_size": 1,
                "iterations": 64,
                "options": {"steps": "50:5", "strategy": "linear"},
                "seconds_an_image": {"median": 7.25, "p90": 8.0, "all": [7.25]},
                "cpu_seconds_an_image": 12.5,
                "images_a_second": 0.125,
                "parts": {"backbone": 5.0, "head": 2.0, "host": 0.25},
                "head_calls": 1763,
                "peak_memory_bytes": peak,
                "floor": {"seconds_an_image": 4.0},
                "near_floor": 0.55,
            }
        ],
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "race.json").write_text(json.dumps(race()))
    (folder / "bench.json").write_text(json.dumps(bench()))
    return folder


def make(results: Path) -> tuple[str, Path]:
    page, chart = results.parent / "docs" / "page.md", results.parent / "docs" / "chart.png"
    options = ["--results", str(results), "--page", str(page), "--chart", str(chart)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    return page.read_text(), chart


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
    ):
        assert figure in page
    assert "CPU time of the process" in page
    assert "iterations 0, 32, 63; backbone calls" in page
    assert "disa-bench --shapes mar_b --random-weights --engine cpu" in page
    with Image.open(chart) as image:
        assert image.size[0] > 500
    assert chart.stat().st_size < 200_000


def test_targets_are_judged() -> None:
    def judged(*records: dict[str, Any]) -> dict[str, tuple[str, str]]:
        races = [record for record in records if "kind" in record]
        benches = [record for record in records if "variants" in record]
        return {name: (measured, met) for name, measured, met in targets(races, benches)}

    found = judged(race(), race(batch=8, official=12.0), bench())
    assert found[f"6 times the speed of {FP32}, batch 1"] == ("10.00 times", "yes")
    assert found[f"6 times the speed of {FP32}, batch 8"] == ("2.00 times", "no")
    assert found[f"2 times the speed of {BF16}, batch 1"] == ("5.00 times", "yes")
    default = "30 times the original default (256 iterations, 100 steps)"
    assert found[default] == ("not measured", "no")
    assert judged(race(), race(iterations=256, official=240.0))[default] == ("40.00 times", "yes")
    memory = [value for name, value in found.items() if name.startswith("peak memory")]
    assert memory == [("1.10 times", "yes")]
    assert [value for name, value in found.items() if name.startswith("load")] == [("1.50 s", "no")]
    assert not any(name.startswith("peak memory") for name in judged(bench("fashion")))


def test_a_race_says_how_to_repeat_it() -> None:
    assert race_command(race()) == (
        "python -m benchmarks.official_loop --shapes mar_b --engine cpu --batch-size 1 "
        "--iterations 64 --steps 50:5 --strategy linear --threads 1 --clock cpu --every 32"
    )


def test_without_records(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--results", str(tmp_path)])
    assert result.exit_code == 1
    assert "there are no records" in result.output
