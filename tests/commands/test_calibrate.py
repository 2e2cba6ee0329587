import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from disa.commands.calibrate import main
from disa.commands.export import defaults_of
from disa.commands.run import main as run
from disa.errors import DisaError
from disa.exporter.export import export
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.families.options import plan_defaults
from disa.runtime.families.registry import checked_defaults
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.schedule import FittedSchedule, read_schedule, schedule_content

QUICK = ["--num", "4", "--reference-steps", "8", "--iterations", "3", "--engine", "cpu"]


@pytest.fixture(scope="module")
def schedule(pixel_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibrated") / "pixels.json"
    # As many steps as are measured: a baseline of more could not be reached.
    options = [*QUICK, "--steps", "4:2", "--plot", "-o", str(path)]
    result = CliRunner().invoke(main, [str(pixel_plan), *options])
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
        (["--prompt", "a bag"], "takes classes"),
        (["--target", "1e-11"], "is not reached"),
        (["--steps", "5:50"], "lower step count"),
        (["--target", "nan"], "target must be a number above 0, not nan"),
        (["--precision", "nan"], "precision must be a number of at least 0"),
    ],
)
def test_what_cannot_be(pixel_plan: Path, tmp_path: Path, options: list[str], words: str) -> None:
    path = tmp_path / "schedule.json"
    result = CliRunner().invoke(main, [str(pixel_plan), *QUICK, *options, "-o", str(path)])
    assert result.exit_code == 1
    assert words in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", ["sub/../m.plan", "linked.plan", "prompts.txt"])
def test_what_is_read_is_not_replaced(pixel_plan: Path, tmp_path: Path, other: str) -> None:
    plan, prompts = tmp_path / "m.plan", tmp_path / "prompts.txt"
    plan.write_bytes(pixel_plan.read_bytes())
    prompts.write_text("a bag\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked.plan").symlink_to(plan)
    arguments = [str(plan), *QUICK, "--prompt-file", str(prompts), "-o", str(tmp_path / other)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "is not a name for a schedule" in result.output
    assert plan.read_bytes() == pixel_plan.read_bytes()
    assert prompts.read_text() == "a bag\n"


@pytest.mark.parametrize("option", ["--target", "--refresh"])
def test_a_second_fit_to_what_is_no_number(
    schedule: Path, pixel_plan: Path, tmp_path: Path, option: str
) -> None:
    given = ["--measured", str(schedule), option, "nan", "-o", str(tmp_path / "again.json")]
    result = CliRunner().invoke(main, [str(pixel_plan), *given])
    assert result.exit_code == 1
    assert "must be a number above 0, not nan" in result.output
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_be_written_nothing_is_measured(
    pixel_plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: object) -> None:
        raise AssertionError("it was measured")

    monkeypatch.setattr("disa.commands.calibrate.calibrate", measure)
    (tmp_path / "file").touch()
    for name, code, words in (
        ("file/steps.json", 1, "cannot be written"),
        (".", 1, "it is a folder"),
        ("steps.png", 2, "is not a name for a schedule"),
        (str(pixel_plan), 2, "is not a name for a schedule"),
    ):
        command = [str(pixel_plan), *QUICK, "--plot", "-o", str(tmp_path / name)]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == code, result.output
        assert words in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "option", [["--num", "4"], ["--guidance-scale", "2"], ["--prompt", "a bag"]]
)
def test_options_that_a_second_fit_would_not_heed(
    option: list[str], schedule: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    command = [str(pixel_plan), "--measured", str(schedule), "-o", str(tmp_path / "x.json")]
    result = CliRunner().invoke(main, [*command, *option])
    assert result.exit_code == 2
    assert f"--measured generates no images: leave out {option[0]}" in result.output


def test_a_plan_can_have_it_as_its_default(schedule: Path, pixel_pipeline: Pipeline) -> None:
    defaults = defaults_of({"schedule": schedule, "steps": None, "temperature": None})
    tokens, own = pixel_pipeline.family.token_sizes, pixel_pipeline.plan.manifest.defaults
    content = checked_defaults("mar", tokens, own, defaults)
    assert MaskedOptions.of("mar", tokens, plan_defaults(content), {}).schedule == read_schedule(
        schedule
    )
    with pytest.raises(DisaError, match="leave out steps"):
        checked_defaults("mar", tokens, own, {**defaults, "steps": "50:5"})


def test_a_schedule_and_steps_contradict(schedule: Path, pixel_pipeline: Pipeline) -> None:
    with pytest.raises(DisaError, match="leave out steps"):
        pixel_pipeline(1, schedule=schedule, steps="9:3")


def test_another_fit_to_the_same_measurement(
    schedule: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    path = tmp_path / "again.json"
    command = [str(pixel_plan), "--measured", str(schedule), "--engine", "cpu", "-o", str(path)]
    command += ["--steps", "4:2"]
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


@pytest.fixture(scope="module")
def iterations(cached_backbone_pixels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fitted") / "iterations.json"
    fitting = ["--fit", "iterations", "--refresh", "100", "--plot", "-o", str(path)]
    result = CliRunner().invoke(main, [str(cached_backbone_pixels), *QUICK, *fitting])
    assert result.exit_code == 0, result.output
    for words in ("of the backbone", "tokens predicted at once", "full passes", "chosen: 0"):
        assert words in result.output
    return path


def test_iterations_and_full_passes(iterations: Path) -> None:
    content = json.loads(iterations.read_text())
    assert (content["version"], content["fit"]) == (2, "iterations")
    assert len(content["tokens"]) == len(content["steps"]) <= 3
    # Which passes are quickest depends on the clock; without full ones it is the exact loop.
    passes = content["refresh_fitted"]["passes"]
    assert content.get("refresh", list(range(len(content["steps"])))) == passes
    assert content["refresh_errors"]["tokens"] == content["tokens"]
    assert content["fitted"]["dependence"] <= content["baseline"]["dependence"] + 1e-9
    assert content["fitted"]["error"] <= content["baseline"]["error"]
    assert iterations.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_schedule_of_iterations_is_taken_by_run(
    iterations: Path, cached_backbone_pixels: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    found = read_schedule(iterations)
    schedule = FittedSchedule(found.counts, found.tokens, (0,))
    path = tmp_path / "with_passes.json"
    path.write_text(json.dumps(schedule_content(schedule)))
    common = ["--num", "2", "--engine", "cpu", "--schedule", str(path)]
    command = [str(cached_backbone_pixels), *common, "-o", str(tmp_path / "run"), "--json"]
    result = CliRunner().invoke(run, command)
    assert result.exit_code == 0, result.output
    request = json.loads(result.stdout)["request"]
    assert request["num_iterations"] == len(schedule.counts)
    assert request["refresh"] == "0"
    assert request["schedule"] == str(schedule)
    assert request["order"] == "random"
    result = CliRunner().invoke(run, [*command, "--num-iterations", "9"])
    assert result.exit_code == 1
    assert "leave out num_iterations" in result.output
    result = CliRunner().invoke(run, [str(pixel_plan), *common, "-o", str(tmp_path / "other")])
    assert result.exit_code == 1
    assert "--cached-backbone" in result.output


def test_a_plan_can_have_iterations_as_its_default(
    iterations: Path, cached_backbone_pixels: Path, pixel_checkpoint: Path, tmp_path: Path
) -> None:
    found = read_schedule(iterations)
    schedule = FittedSchedule(found.counts, found.tokens, (0,))
    path = tmp_path / "with_passes.json"
    path.write_text(json.dumps(schedule_content(schedule)))
    defaults = defaults_of({"schedule": path})
    with pytest.raises(DisaError, match="add --cached-backbone"):
        export(pixel_checkpoint, tmp_path / "a.plan", defaults=defaults, check=False)
    with Pipeline.from_plan(cached_backbone_pixels, "cpu") as pipe:
        manifest = pipe.plan.manifest
        content = checked_defaults("mar", pipe.family.token_sizes, manifest.defaults, defaults)
        assert content["num_iterations"] == len(schedule.counts)
        given = plan_defaults(json.loads(json.dumps(content)))
        options = MaskedOptions.of("mar", pipe.family.token_sizes, given, {})
        assert options.schedule == schedule
        assert options.refresh == "0"
        assert options.partition(sum(schedule.tokens or ())) == list(schedule.tokens or ())
        calls = sum(len(options.table(index)) for index in range(options.num_iterations))
        assert pipe(1, schedule=schedule).stats.head_calls == calls


def test_iterations_fitted_again(
    iterations: Path, cached_backbone_pixels: Path, tmp_path: Path
) -> None:
    path = tmp_path / "again.json"
    again = [str(cached_backbone_pixels), "--measured", str(iterations), "-o", str(path)]
    result = CliRunner().invoke(main, [*again, "--fit", "iterations", "--refresh", "1e-9"])
    assert result.exit_code == 0, result.output
    first, second = json.loads(iterations.read_text()), json.loads(path.read_text())
    assert second["tokens"] == first["tokens"]
    assert second["dependence"] == first["dependence"]
    assert second["refresh_fitted"]["error"] <= 1e-9
    assert second["refresh_errors"] == first["refresh_errors"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dependence": {"places": [0, 1]}}, "places up to 15"),
        ({"dependence": {"places": [5, 15]}}, "ascending from 0"),
        ({"dependence": {"error": [[0.0]]}}, "a row and a column for each place"),
        ({"dependence": {"half_width": "x"}}, "should be a list"),
        ({"backbone_seconds": [1.0]}, "3 numbers from 0"),
        ({"refresh_errors": {"tokens": [1, 1]}}, "the same number of tokens"),
        ({"refresh_errors": {"tokens": []}}, "at least one token"),
        ({"refresh_errors": {"full": [1.0] * 99}}, "numbers from 0"),
        ({"refresh_errors": {"error": [[1.0]]}}, "a row for each place"),
        ({"dependence": None}, "not measured for iterations"),
    ],
)
def test_unusable_measurements_of_iterations(
    change: dict[str, Any],
    words: str,
    iterations: Path,
    cached_backbone_pixels: Path,
    tmp_path: Path,
) -> None:
    content = json.loads(iterations.read_text())
    for name, value in change.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    broken, path = tmp_path / "broken.json", tmp_path / "again.json"
    broken.write_text(json.dumps(content))
    command = [str(cached_backbone_pixels), "--measured", str(broken), "--fit", "iterations"]
    result = CliRunner().invoke(main, [*command, "-o", str(path)])
    assert result.exit_code == 1
    assert words in result.output
    assert not path.exists()


def test_a_file_that_was_measured_for_steps(
    schedule: Path, pixel_plan: Path, tmp_path: Path
) -> None:
    command = [str(pixel_plan), "--measured", str(schedule), "-o", str(tmp_path / "x.json")]
    for more, words in (
        (["--fit", "iterations"], "measure with --fit iterations"),
        (["--refresh", "0.1"], "measure with --refresh"),
        (["--fit", "iterations", "--cost", "calls"], "fitted to time"),
    ):
        result = CliRunner().invoke(main, [*command, *more])
        assert result.exit_code == 1
        assert words in result.output


def test_full_passes_of_a_plan_that_forgets(pixel_plan: Path, tmp_path: Path) -> None:
    command = [str(pixel_plan), *QUICK, "--refresh", "0.1", "-o", str(tmp_path / "x.json")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "--cached-backbone" in result.output


@pytest.mark.parametrize("name", ["flowar_s", "xar"])
def test_iterations_that_are_fixed(
    name: str, golden_plan: Callable[..., Path], tmp_path: Path
) -> None:
    command = [str(golden_plan(name)), "--fit", "iterations", "-o", str(tmp_path / "x.json")]
    result = CliRunner().invoke(main, [*command, "--num", "2", "--engine", "cpu"])
    assert result.exit_code == 1
    assert "model are fixed" in result.output
