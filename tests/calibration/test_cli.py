import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from disa.calibration.cli import main
from disa.errors import DisaError
from disa.exporter.cli import _check_defaults as check_defaults
from disa.runtime.pipeline import Pipeline
from disa.runtime.run import main as run
from disa.runtime.schedule import read_schedule

QUICK = ["--num", "4", "--reference-steps", "8", "--iterations", "3", "--engine", "cpu"]


@pytest.fixture(scope="module")
def schedule(pixel_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "pixels.json"
    result = CliRunner().invoke(main, [str(pixel_plan), *QUICK, "--plot", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "variance" in result.output
    return path


def test_what_is_written(schedule: Path) -> None:
    content = json.loads(schedule.read_text())
    assert len(content["steps"]) == 3
    assert content["images"] == 4
    assert content["fitted"]["error"] <= content["baseline"]["error"]
    assert content["fitted"]["calls"] <= content["baseline"]["calls"]
    assert list(read_schedule(schedule).counts) == content["steps"]
    assert schedule.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in schedule.parent.iterdir()) == ["pixels.json", "pixels.png"]


def test_the_schedule_is_taken_by_run(schedule: Path, pixel_plan: Path, tmp_path: Path) -> None:
    arguments = [str(pixel_plan), "--num", "2", "--iterations", "3", "--engine", "cpu"]
    command = [*arguments, "--schedule", str(schedule), "-o", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(run, command)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["stats"]["head_calls"] == sum(read_schedule(schedule).counts)


def test_the_python_interface_takes_it(schedule: Path, pixel_pipeline: Pipeline) -> None:
    drawn = pixel_pipeline(1, schedule=schedule, num_iterations=3)
    assert drawn.stats.head_calls == sum(read_schedule(schedule).counts)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a bag"], "draws classes"),
        (["--target", "1e-11"], "is not reached"),
        (["--steps", "5:50"], "lower step count"),
    ],
)
def test_what_cannot_be(pixel_plan: Path, tmp_path: Path, options: list[str], words: str) -> None:
    path = tmp_path / "schedule.json"
    result = CliRunner().invoke(main, [str(pixel_plan), *QUICK, *options, "-o", str(path)])
    assert result.exit_code == 1
    assert words in result.output
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_be_written_nothing_is_drawn(
    pixel_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: object) -> None:
        raise AssertionError("it was drawn")

    monkeypatch.setattr("disa.calibration.cli.draw_and_measure", draw)
    (tmp_path / "file").touch()
    for name, code, words in (
        ("file/steps.json", 1, "cannot be written"),
        (".", 1, "it is a folder"),
        ("steps.png", 2, "is no name for a schedule"),
        (str(pixel_plan), 2, "is no name for a schedule"),
    ):
        command = [str(pixel_plan), *QUICK, "--plot", "-o", str(tmp_path / name)]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == code, result.output
        assert words in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("option", [["--num", "4"], ["--cfg", "2"], ["--prompt", "a bag"]])
def test_options_that_a_second_fit_would_not_heed(
    option: list[str], schedule: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    command = [str(pixel_plan), "--measured", str(schedule), "-o", str(tmp_path / "x.json")]
    result = CliRunner().invoke(main, [*command, *option])
    assert result.exit_code == 2
    assert f"--measured draws nothing: leave out {option[0]}" in result.output


def test_a_plan_can_have_it_as_its_default(schedule: Path, pixel_pipeline: Pipeline) -> None:
    sampling = {"schedule": schedule, "steps": None, "strategy": None, "cfg": None}
    options: dict[str, object] = {**sampling, "temperature": None}
    check_defaults(options)
    defaults = {**pixel_pipeline.plan.manifest.defaults, "schedule": options["schedule"]}
    assert pixel_pipeline.family.settings(defaults, None).schedule == read_schedule(schedule)
    with pytest.raises(DisaError, match="leave out --steps"):
        check_defaults({**sampling, "steps": "50:5", "temperature": None})


def test_a_schedule_and_steps_contradict(schedule: Path, pixel_pipeline: Pipeline) -> None:
    with pytest.raises(DisaError, match="leave out steps"):
        pixel_pipeline(1, schedule=schedule, steps="9:3")


def test_another_fit_to_the_same_measurement(
    schedule: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    path = tmp_path / "again.json"
    command = [str(pixel_plan), "--measured", str(schedule), "--engine", "cpu", "-o", str(path)]
    result = CliRunner().invoke(main, [*command, "--plot"])
    assert result.exit_code == 0, result.output
    first, again = json.loads(schedule.read_text()), json.loads(path.read_text())
    assert again["steps"] == first["steps"]
    assert again["tradeoff"] == first["tradeoff"]
    assert again["options"] == first["options"]
    assert path.with_suffix(".png").exists()
    result = CliRunner().invoke(main, [*command, "--match", "cost", "--cost", "time"])
    assert result.exit_code == 0, result.output
    fitted = json.loads(path.read_text())
    assert fitted["fitted"]["seconds"] <= fitted["baseline"]["seconds"]
    assert fitted["fitted"]["error"] <= first["fitted"]["error"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan_sha256": "0"}, "another plan"),
        ({"tradeoff": {}}, "lacks"),
        ({"tightness": "much"}, "should be a number"),
        ({"tradeoff": {"tokens": [1, 2]}}, "a row for each AR iteration"),
        ({"tradeoff": {"error": [[1.0], [1.0], [1.0]]}}, "a number for each step count"),
        ({"tradeoff": {"carry": [0, 1, 1]}}, "positive"),
        ({"signals": {"variance": {"mean": [1]}}}, "half_width"),
    ],
)
def test_unusable_measurements(
    change: dict[str, Any], words: str, schedule: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    content = json.loads(schedule.read_text())
    for name, value in change.items():
        whole = isinstance(value, dict) and value
        content[name] = {**content[name], **value} if whole else value
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps(content))
    path = tmp_path / "again.json"
    command = [str(pixel_plan), "--measured", str(broken), "--engine", "cpu", "-o", str(path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert words in result.output
    assert not path.exists()
