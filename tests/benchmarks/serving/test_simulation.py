"""The real scheduler with a simulated clock."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.serving.__main__ import main
from benchmarks.serving.simulation import CostModel, simulate
from disa.server.scheduling.policy import JoinAtOnce, OneAtATime, Static

COSTS = CostModel(iterations=8, upper=4, lower=2, tokens=32, buffer=4)


def test_an_image_alone_takes_the_sum_of_its_calls() -> None:
    (alone,) = simulate(COSTS, JoinAtOnce(), [(1.0, 8)], 4)
    assert alone.seconds is not None
    launches = 8 * COSTS.backbone_launch + 22 * COSTS.head_launch + 2 * COSTS.decoder_launch
    assert launches < alone.seconds < 2 * launches
    assert alone.first_partial is not None
    assert alone.first_partial < alone.seconds
    assert alone.ended == pytest.approx(1.0 + alone.seconds, abs=1e-6)


def test_policies_differ_as_they_should() -> None:
    burst = [(0.0, 8)] * 4
    single = simulate(COSTS, OneAtATime(), burst, 4)
    batch = simulate(COSTS, Static(0.0), burst, 4)
    assert max(each.ended for each in batch) < 0.6 * max(each.ended for each in single)
    # One who comes late does not wait for the batch where it can join.
    late = [(0.0, 8), (0.001, 8)]
    waiting, joining = (
        simulate(COSTS, p, late, 4)[1].seconds for p in (OneAtATime(), JoinAtOnce())
    )
    assert joining is not None
    assert waiting is not None
    assert joining != waiting


def test_a_ragged_backbone_shares_calls_of_different_iterations() -> None:
    late = [(0.0, 8), (0.001, 8), (0.002, 8)]
    apart, ragged = (
        max(each.ended for each in simulate(COSTS, JoinAtOnce(), late, 4, ragged=which))
        for which in (False, True)
    )
    assert ragged < apart


def test_the_command(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    options = ["--requests", "20", "--load", "0.5", "--mixed", "--iterations", "8"]
    result = CliRunner().invoke(main, ["simulate", *options, "--record", str(record)])
    assert result.exit_code == 0, result.output
    content = json.loads(record.read_text())
    assert content["costs"]["iterations"] == 8
    assert {entry["policy"] for entry in content["entries"]} >= {"join", "static", "single"}
    assert all(entry["images"] == entry["requests"] for entry in content["entries"])
