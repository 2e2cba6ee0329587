import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from demo import models_page
from demo.observe import RESULTS


def signal(first: float, last: float) -> dict[str, list[float]]:
    return {"mean": [first, (first + last) / 2, last], "half_width": [0.01] * 3}


def row(schedule: str, plan: str = "fp32.plan", distance: float = 3.0) -> dict[str, Any]:
    return {
        "plan": plan,
        "schedule": schedule,
        "head_rows_per_image": 1234.5,
        "cpu_seconds": 61.4,
        "images": 100,
        "accuracy": 0.95,
        "frechet_distance": distance,
    }


def observed() -> dict[str, Any]:
    signals = {
        "predictability": signal(0.5, 0.1),
        "variance": signal(0.5, 0.45),
        "curvature": signal(0.1, 0.2),
    }
    real = {"accuracy": 0.93, "distance": 0.03}
    schedules = ["constant 50", "linear 50:5", "fitted work/fitted.json", "adaptive 50:5 0.05"]
    return {
        "signals": {"signals": signals, "images": 64, "steps": [9, 8, 7]},
        "schedules": {
            "rows": [row(name) for name in schedules],
            "real": real,
            "engine": {"fp32.plan": "ONNX Runtime 1.32.0 CPUExecutionProvider fp32"},
        },
        "precisions": {
            "rows": [row("linear 50:5", "int8.plan", 3.25)],
            "engine": {
                "int8.plan": "OpenVINO 2026.4.1 CPU fp32; OpenVINO 2026.4.1 CPU int8, rest in fp32"
            },
        },
        "refused": {"fp8": "fp8 loses too much"},
    }


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for family in models_page.NAMES:
        (tmp_path / f"{family}.json").write_text(json.dumps(observed()))
    return tmp_path


def test_the_page_has_the_measurements(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    vae = {"images": 1000, "psnr": 27.12, "distance": 0.594, "accuracy": 0.9176}
    (results / "vae.json").write_text(json.dumps(vae))
    arguments = ["--results", str(results), "-o", str(page)]
    result = CliRunner().invoke(models_page.main, arguments)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert "<!--" not in text
    assert "27.1 dB, a Fréchet distance of 0.59 and an accuracy of 91.8%" in text
    assert "| MAR | 3 | 64 | 0.500 to 0.100, falls | 0.500 to 0.450, stays |" in text
    assert "| 9, 8, 7 |" in text
    assert "0.100 to 0.200, rises" in text
    assert "| fitted | 100 | 1,234 | 61 | 95.0% | 3.00 |" in text
    assert "| adaptive 50:5 0.05 | 100 | 1,234 | 61 | 95.0% | 3.00 |" in text
    ran = "ONNX Runtime CPUExecutionProvider fp32"
    assert f"| xAR | fp32 | {ran} | 95.0% | 3.00 |" in text
    ran = "OpenVINO CPU fp32, int8, rest in fp32"
    assert f"| xAR | int8 | {ran} | 95.0% | 3.25 |" in text
    assert "refused: fp8 loses too much" in text
    assert Image.open(page.parent / "images" / "observations.png").width > 800


def test_a_family_without_measurements_is_reported(results: Path) -> None:
    (results / "xar.json").unlink()
    text = models_page.page(models_page.read(results), None)
    assert "### xAR\n\nNot measured yet." in text


def test_nothing_was_observed(tmp_path: Path) -> None:
    result = CliRunner().invoke(models_page.main, ["--results", str(tmp_path)])
    assert result.exit_code == 1
    assert "python -m demo.observe" in result.output
    assert result.output.count("\n") == 1


def test_the_page_shows_the_records_of_tolerances() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "demo-models.md").read_text().split())
    content = json.loads((RESULTS.parent / "tolerances" / "flowar.json").read_text())
    record = {
        row["schedule"].rpartition(":")[2]: f"{row['frechet_distance']:.2f}"
        for row in content["rows"]
    }
    words = "is {} with linear steps, {} with a tolerance of 0.01, and {} with 0.02."
    assert words.format(*(record[steps] for steps in ("15", "15 0.01", "15 0.02"))) in text


def test_the_text_agrees_with_the_records() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs" / "demo-models.md").read_text().split())
    observed = models_page.read(RESULTS)
    schedules = {
        family: {row["schedule"]: row for row in content["schedules"]["rows"]}
        for family, content in observed.items()
    }
    rows = {name: row["head_rows_per_image"] for name, row in schedules["xar"].items()}
    usual = rows["linear 50:15"]
    assert f"50 fixed steps with {usual / rows['constant 50']:.0%}".replace("%", " %") in text
    small, large = (1 - rows[f"adaptive 50:15 {tolerance}"] / usual for tolerance in (0.05, 0.2))
    told = (
        f"0.05 costs nothing and saves {small:.0%} of the rows; 0.2 saves {large:.0%}, at a price"
    )
    assert told.replace("%", " %") in text
    changes = {
        (family, Path(row["plan"]).stem): row["frechet_distance"]
        - schedules[family][row["schedule"]]["frechet_distance"]
        for family, content in observed.items()
        for row in content["precisions"]["rows"]
    }
    assert f"{-changes['mar', 'fp16']:.2f} less on MAR in fp16 and bf16" in text
    assert f"{changes['xar', 'fp8']:.2f} more on xAR in fp8" in text
    assert min(changes, key=lambda name: changes[name])[0] == "mar"
    assert max(changes, key=lambda name: changes[name]) == ("xar", "fp8")
    assert not any(content["refused"] for content in observed.values())
