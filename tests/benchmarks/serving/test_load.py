"""A server under load, measured for a second."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.serving import __main__ as serving
from benchmarks.serving.__main__ import options_of
from benchmarks.serving.load import Served, poisson, server_process, summary
from disa.errors import DisaError


def test_servers_are_measured(pixel_plan: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["--server", "join:4", "--load", "0.5", "--rounds", "1", "--seconds", "1"]
    options += ["--iterations", "4", "--steps", "3:2", "--mixed", "--capacity-images", "4"]
    result = CliRunner().invoke(
        serving.main, ["measure", str(pixel_plan), *options, "--record", str(record)]
    )
    assert result.exit_code == 0, result.output
    content = json.loads(record.read_text())
    (entry,) = content["entries"]
    assert (entry["load"], entry["policy"]) == (0.5, "join:4")
    assert entry["images"] == entry["requests"] > 0
    assert content["kinds"]["quick"]["num_iterations"] == 1
    assert content["capacity"]["join:4"] > 0
    assert "ONNX Runtime" in content["engines"]["join:4"]


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    missing = tmp_path / "no.plan"
    with pytest.raises(DisaError, match=r"start: .*no\.plan"), server_process(missing, []):
        pass


def test_a_server_that_ends_says_why(golden_plan: Any) -> None:
    options = ["--engine", "cpu", "--warm-up-seconds", "0"]
    with (
        pytest.raises(DisaError, match="no decoder to pixels"),
        server_process(golden_plan("mar"), options),
    ):
        pass


def test_a_variant_has_a_policy_and_maybe_an_engine() -> None:
    assert options_of("static:16") == ["--policy", "static", "--max-images", "16"]
    options = ["--policy", "cohorts", "--max-images", "8", "--cohorts", "2", "--engine", "openvino"]
    assert options_of("cohorts-2:8@openvino") == options
    for wrong in ("static", "static:", "static:8@", "static:8@quick", "8", "static-x:8"):
        with pytest.raises(DisaError, match="such as cohorts-2:16@openvino"):
            options_of(wrong)


def test_poisson_arrivals() -> None:
    moments = poisson(50, 10, {"a": 3, "b": 1}, seed=0)
    assert moments == sorted(moments)
    assert 400 < len(moments) < 600
    assert 0.65 < sum(kind == "a" for _, kind in moments) / len(moments) < 0.85
    assert moments == poisson(50, 10, {"a": 3, "b": 1}, seed=0)


def test_a_run_is_summarised() -> None:
    served = [Served("a", 1.0, 0.5, 2.0), Served("a", 7.0, None, 8.0), Served("b", None, None, 9.0)]
    found = summary(served, {"a": 2.0, "b": 1.0})
    assert (found["requests"], found["images"]) == (3, 2)
    assert found["slowdown_p50"] == 2.0
    assert found["within_target"] == pytest.approx(1 / 3)
    assert found["first_partial_p50"] == 0.25
    assert found["images_a_second"] == pytest.approx(2 / 9)
