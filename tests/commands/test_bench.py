from pathlib import Path

import pytest
from click.testing import CliRunner

from disa.commands import bench
from disa.commands.bench import main


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "nothing to measure"),
        (["--shapes", "mar_b"], "add --random-weights"),
        (["--shapes", "mar_z", "--random-weights"], "no shapes named mar_z"),
        (["x.plan", "--shapes", "mar_b"], "leave out --shapes"),
        (["x.plan"], "there is no plan at x.plan"),
        (["x.plan", "--engine", "abacus"], "no engine abacus"),
        (["x.plan", "--batch-size", "1,0"], "the batch size '0' is not a whole number"),
        (["x.plan", "--batch-size", "1,,2"], "empty entry"),
        (["x.plan", "--batch-size", "1,1"], "twice"),
        (["x.plan", "--iterations", "-3"], "number of iterations '-3'"),
        (["x.plan", "--steps", "5:50"], "x.plan"),
        (["x.plan", "--steps", "many"], "steps are UPPER:LOWER"),
        (["x.plan", "--compare", "none.json"], "none.json: it cannot be read"),
        (["x.plan", "--json", "nowhere/new.json"], "nowhere/new.json cannot be written"),
        (["x.plan", "--json", "/proc/new.json"], "/proc/new.json cannot be written"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    options: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert complaint in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_not_overwritten(tmp_path: Path) -> None:
    plan = tmp_path / "x.plan"
    plan.write_bytes(b"a plan")
    result = CliRunner().invoke(main, [str(plan), "--json", str(plan)])
    assert result.exit_code == 2
    assert "x.plan is measured: give another file for --json" in result.output


def test_a_worker_passes_its_complaint_on(pixel_plan: Path) -> None:
    result = CliRunner().invoke(main, [str(pixel_plan), "--iterations", "65", "--engine", "cpu"])
    assert result.exit_code == 1
    assert "65 iterations are more than the" in result.output


def test_random_weights_are_measured(
    pixel_plan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "disa.exporter.random_weights.random_plan", lambda shapes, report: pixel_plan
    )
    assert bench.choose_plan(None, "mar_b", True) == pixel_plan
