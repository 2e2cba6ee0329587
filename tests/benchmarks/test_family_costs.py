import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import family_costs
from benchmarks.family_costs import COMPARED, cost_rows, main, variants


def test_variants_differ_in_their_steps_only() -> None:
    for model in COMPARED:
        disa, *others = variants(model, None)
        assert "steps" not in disa
        for other in others:
            assert other.pop("strategy") == "fixed"
            upper, lower = other.pop("steps").split(":")
            assert upper == lower
            assert other == disa
    assert [v["num_iterations"] for v in variants("mar_b", 8)] == [8, 8, 8]
    assert all("num_iterations" not in v for v in variants("xar_b", 8))


def test_a_model_is_compared(
    monkeypatch: pytest.MonkeyPatch, pixel_plan: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(family_costs, "random_plan", lambda *_: pixel_plan)
    output = tmp_path / "costs.json"
    options = ["--only", "mar_b", "--iterations", "3", "--threads", "1", "-o", str(output)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    entries = json.loads(output.read_text())["entries"]
    calls = [variant["head_calls"] for variant in entries["mar_b"]["variants"]]
    assert calls[1:] == [150, 300]
    rows = cost_rows(entries)
    assert [row[2] for row in rows] == ["3", "3", "3"]
    assert [row[1] for row in rows][1:] == ["fixed 50", "fixed 100"]
    assert [row[4] for row in rows] == ["1.00x", f"{150 / calls[0]:.2f}x", f"{300 / calls[0]:.2f}x"]
