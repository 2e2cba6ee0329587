import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from demo.plot_quality import label_of, main, read_rows
from disa.errors import DisaError


def content(*schedules: str, **changes: Any) -> dict[str, Any]:
    rows = [
        {
            "plan": "fashion.plan",
            "schedule": schedule,
            "head_rows_per_image": 100.0 * (index + 1),
            "frechet_distance": 5.0 / (index + 1),
        }
        for index, schedule in enumerate(schedules)
    ]
    written = {"rows": rows, "options": {"seed": 0}, "num": 50, "batch_size": 10}
    return {**written, "real": {"accuracy": 0.9, "distance": 0.1}, **changes}


def write(path: Path, *schedules: str, **changes: Any) -> Path:
    path.write_text(json.dumps(content(*schedules, **changes)))
    return path


def test_a_picture_of_several_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", "constant 5", "constant 50", "linear 50:5", "cosine 50:5")
    second = write(tmp_path / "b.json", "linear 50:5", "fitted x/f.json", "adaptive 50:5 0.02")
    output = tmp_path / "images" / "quality.png"
    result = CliRunner().invoke(main, [str(first), str(second), "-o", str(output)])
    assert result.exit_code == 0, result.output
    assert output.read_bytes().startswith(b"\x89PNG")
    rows, _ = read_rows([first, second])
    assert [row["schedule"] for row in rows].count("linear 50:5") == 1
    assert len(rows) == 6


@pytest.mark.parametrize("change", [{"num": 51}, {"options": {"seed": 1}}])
def test_other_runs_are_not_mixed(change: dict[str, Any], tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", "constant 5")
    second = write(tmp_path / "b.json", "linear 50:5", **change)
    with pytest.raises(DisaError, match=f"other {next(iter(change))}"):
        read_rows([first, second])


REAL_IS_TEXT = '{"rows": [], "options": {}, "num": 5, "batch_size": 1, "real": "good"}'


@pytest.mark.parametrize("text", ["{", "[]", '{"rows": [{}]}', '{"rows": []}', REAL_IS_TEXT])
def test_other_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    result = CliRunner().invoke(main, [str(path), "-o", str(tmp_path / "q.png")])
    assert result.exit_code == 1
    assert "was not written by demo.evaluate" in result.output
    assert not (tmp_path / "q.png").exists()


def test_labels() -> None:
    assert label_of("linear 50:5") == "50:5"
    assert label_of("adaptive 50:5 0.02") == "50:5 0.02"
    assert label_of("fitted outputs/cost.schedule.json") == "cost.schedule"
