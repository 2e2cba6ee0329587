import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import official_loop
from benchmarks.official.contenders import BF16, FP32
from benchmarks.official_loop import chosen_iterations, main
from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.random_weights import FAMILY_OF_SIZE

from ..conftest import GOLDEN, ExportGolden


def test_iterations_to_measure() -> None:
    assert chosen_iterations(64, 32, None) == [0, 32, 63]
    assert chosen_iterations(64, 1, "32,0") == [0, 32]
    for at in ("64", "-1", "x", ""):
        with pytest.raises(DisaError, match="--at"):
            chosen_iterations(64, 1, at)


def test_the_command(pixel_checkpoint: Path, pixel_plan: Path, tmp_path: Path) -> None:
    output = tmp_path / "race.json"
    options = ["--checkpoint", str(pixel_checkpoint), "--plan", str(pixel_plan)]
    options += ["--iterations", "5", "--steps", "3:2", "--every", "3", "--threads", "1"]
    options += ["--no-compiled"]
    result = CliRunner().invoke(main, [*options, "--json", str(output)])
    assert result.exit_code == 0, result.output
    assert "disa cpu" in result.output
    record = json.loads(output.read_text())
    assert record["measured"] == [0, 3, 4]
    assert record["command"] == " ".join(
        [
            f"python -m benchmarks.official_loop --checkpoint {pixel_checkpoint}",
            f"--plan {pixel_plan.name} --no-compiled --iterations 5 --steps 3:2 --threads 1",
            "--every 3",
        ]
    )
    assert record["contenders"].keys() == {FP32, BF16, "disa cpu"}


def test_the_command_races_a_backbone_that_remembers(
    pixel_checkpoint: Path, remembering_pixels: Path, tmp_path: Path
) -> None:
    output = tmp_path / "race.json"
    options = ["--checkpoint", str(pixel_checkpoint), "--plan", str(remembering_pixels)]
    options += ["--iterations", "5", "--steps", "3:2", "--every", "3", "--threads", "1"]
    options += ["--no-compiled", "--refresh", "2:1"]
    result = CliRunner().invoke(main, [*options, "--json", str(output)])
    assert result.exit_code == 0, result.output
    record = json.loads(output.read_text())
    contender = record["contenders"]["disa cpu refresh 2:1"]
    assert len(contender["backbone_seconds_a_call"]) == 3
    assert len(contender["cached_seconds_a_call"]) == 2  # None in the first iteration.
    result = CliRunner().invoke(main, [*options, "--clock", "cpu"])
    assert result.exit_code == 1
    assert "leave out --clock cpu" in result.output


def test_refresh_without_a_cached_backbone_is_refused(
    pixel_checkpoint: Path, pixel_plan: Path
) -> None:
    options = ["--checkpoint", str(pixel_checkpoint), "--plan", str(pixel_plan)]
    result = CliRunner().invoke(main, [*options, "--refresh", "9:5"])
    assert result.exit_code == 1
    assert "no plan has a cached backbone" in result.output


def test_the_command_needs_weights() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2
    assert "--shapes" in result.output


@pytest.mark.parametrize(
    ("name", "shapes", "options"),
    [
        ("flowar_s", "flowar_s", []),
        ("flowar_l", "flowar_l", []),
        ("xar", "xar_b", []),
        ("harmon", "harmon_0_5b", ["--iterations", "4"]),
    ],
)
def test_every_family_is_raced(
    name: str,
    shapes: str,
    options: list[str],
    golden_plan: ExportGolden,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plain loops compute what the plan computes, all iterations one after the other."""
    opened = open_checkpoint(GOLDEN / name / "checkpoint.pth")
    file = GOLDEN / name / ("config.json" if name == "harmon" else "architecture.json")
    family = FAMILY_OF_SIZE[official_loop.official_name(shapes)]
    config = family.configure(opened.state, json.loads(file.read_text()), opened.args)
    state = {
        n: tensor.float() for n, tensor in opened.state.items() if not family.unused_at_inference(n)
    }
    monkeypatch.setattr(official_loop, "official_config", lambda _: config)
    monkeypatch.setattr(official_loop, "random_state", lambda _: state)
    monkeypatch.setattr(official_loop, "random_plan", lambda _: golden_plan(name))
    output = tmp_path / "race.json"
    arguments = ["--shapes", shapes, "--steps", "5:3", "--threads", "1", *options]
    result = CliRunner().invoke(main, [*arguments, "--json", str(output)])
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads(output.read_text())
    found = record["contenders"]
    assert found.keys() == {FP32, BF16, "disa cpu"}
    assert found["disa cpu"]["difference"] < 1e-4
    assert 1e-4 < found[BF16]["difference"] < 0.5
    assert all(each["seconds_an_image"] > 0 for each in found.values())
    assert record["shapes"] == shapes.replace("0_5b", "0.5b")
    if name != "harmon":
        refused = CliRunner().invoke(main, [*arguments, "--every", "2"])
        assert refused.exit_code == 1
        assert "leave out --clock" in refused.output
