import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from benchmarks import official_loop
from benchmarks.official.contenders import BF16, FP32
from benchmarks.official.tables import floor_rows, race_rows
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families.configs.mar import configure
from disa.exporter.random_weights import FAMILY_OF_SIZE

from ..conftest import GOLDEN, ExportGolden

Race = Callable[..., Result]


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch, pixel_checkpoint: Path, tmp_path: Path) -> Race:
    """Runs the command on small weights; its record is race.json."""

    def invoke(*options: str, shapes: str = "mar_b", weights: Any = None) -> Result:
        if weights is None:
            opened = open_checkpoint(pixel_checkpoint)
            weights = configure(opened.state, None, opened.args), dict(opened.state)
        monkeypatch.setattr(official_loop, "official_config", lambda _: weights[0])
        monkeypatch.setattr(official_loop, "random_state", lambda _: weights[1])
        output = tmp_path / "race.json"
        arguments = ["--shapes", shapes, "--threads", "1", *options, "--json", str(output)]
        return CliRunner().invoke(official_loop.main, arguments)

    return invoke


def test_a_plan_is_raced_with_and_without_a_cache(
    race: Race, cached_backbone_pixels: Path, tmp_path: Path
) -> None:
    options = ["--plan", str(cached_backbone_pixels), "--iterations", "5", "--steps", "3:2"]
    options += ["--every", "3", "--no-compiled", "--refresh", "2:1"]
    result = race(*options)
    assert result.exit_code == 0, result.output
    assert "disa cpu" in result.output
    record = json.loads((tmp_path / "race.json").read_text())
    assert record["measured"] == [0, 3, 4]
    assert record["command"] == (
        f"python -m benchmarks.official_loop --shapes mar_b --plan {cached_backbone_pixels.name} "
        "--no-compiled --refresh 2:1 --iterations 5 --steps 3:2 --threads 1 --every 3"
    )
    contenders = record["contenders"]
    assert contenders.keys() == {FP32, BF16, "disa cpu", "disa cpu refresh 2:1"}
    assert contenders["disa cpu"]["difference"] < 1e-4
    assert len(contenders["disa cpu refresh 2:1"]["backbone_seconds_a_call"]) == 3
    # None in the first iteration.
    assert len(contenders["disa cpu refresh 2:1"]["cached_seconds_a_call"]) == 2


def test_bf16_is_left_out_where_it_is_emulated(
    race: Race, pixel_plan: Path, tmp_path: Path
) -> None:
    options = ["--iterations", "2", "--steps", "3:2", "--no-compiled", "--no-bf16"]
    result = race("--plan", str(pixel_plan), *options)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "race.json").read_text())
    assert record["contenders"].keys() == {FP32, "disa cpu"}
    assert [row[7] for row in race_rows(record)] == ["", ""]
    assert [row[0] for row in floor_rows(record)] == ["fp32", "int8"]
    assert "--no-bf16" in record["command"]


def test_refresh_without_a_cached_backbone_is_refused(race: Race, pixel_plan: Path) -> None:
    result = race("--plan", str(pixel_plan), "--refresh", "9:5")
    assert result.exit_code == 1
    assert "no plan has a cached backbone" in result.output


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
    race: Race,
    golden_plan: ExportGolden,
    tmp_path: Path,
) -> None:
    """The plain loops compute what the plan computes, all iterations one after the other."""
    opened = open_checkpoint(GOLDEN / name / "checkpoint.pth")
    file = GOLDEN / name / ("config.json" if name == "harmon" else "architecture.json")
    family = FAMILY_OF_SIZE[official_loop.official_name(shapes)]
    config = family.configure(opened.state, json.loads(file.read_text()), opened.args)
    state = {
        n: tensor.float() for n, tensor in opened.state.items() if not family.unused_at_inference(n)
    }
    arguments = ["--plan", str(golden_plan(name)), "--steps", "5:3", *options]
    result = race(*arguments, shapes=shapes, weights=(config, state))
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "race.json").read_text())
    found = record["contenders"]
    assert found.keys() == {FP32, BF16, "disa cpu"}
    assert found["disa cpu"]["difference"] < 1e-4
    assert 1e-4 < found[BF16]["difference"] < 0.5
    assert all(each["seconds_an_image"] > 0 for each in found.values())
    assert record["shapes"] == shapes.replace("0_5b", "0.5b")
    if name == "xar":
        refused = race(*arguments, "--every", "2", shapes=shapes, weights=(config, state))
        assert refused.exit_code == 1
        assert "leave out --every" in refused.output
