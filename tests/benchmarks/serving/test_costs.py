import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.serving.__main__ import main
from benchmarks.serving.costs import fit
from benchmarks.serving.simulation import CostModel, simulate
from disa.runtime.stats import Stats
from disa.server.scheduling.policy import Static

COSTS = CostModel(tokens=16, buffer=4, iterations=4, upper=5, lower=5)
ROWS = 2 * 5 * 16
"""Rows of the head for a guided image: five steps of sixteen tokens."""


def cost_of(images: int) -> Stats:
    """What a batch costs, by another part of the code: the simulated scheduler."""
    decoding = COSTS.decoder_launch + images * COSTS.decoder_image
    head = 4 * 5 * COSTS.head_launch + images * ROWS * COSTS.head_row
    burst = [(0.0, COSTS.iterations)] * images
    total = max(one.ended for one in simulate(COSTS, Static(0.0), burst, images))
    # The simulation decodes a preview as well.
    seconds = {"backbone": total - head - 2 * decoding, "head": head, "decoder": decoding}
    return Stats(seconds, images, head_calls=20, head_rows=images * ROWS // 2)


def test_the_costs_of_a_machine_are_found() -> None:
    sizes = [1, 2, 4, 8]
    blank = replace(COSTS, backbone_launch=0.0, backbone_token=0.0, head_row=0.0)
    found = fit(blank, sizes, [cost_of(images) for images in sizes])
    assert found.backbone_launch == pytest.approx(COSTS.backbone_launch, rel=1e-6)
    assert found.backbone_token == pytest.approx(COSTS.backbone_token, rel=1e-6)
    assert found.head_launch == pytest.approx(COSTS.head_launch, rel=1e-6)
    assert found.head_row == pytest.approx(COSTS.head_row, rel=1e-6)
    assert found.decoder_image == pytest.approx(COSTS.decoder_image, rel=1e-6)


def test_a_launch_is_never_less_than_nothing() -> None:
    runs = [
        replace(cost_of(n), seconds={"backbone": n**2, "head": n, "decoder": 1}) for n in (1, 4)
    ]
    found = fit(COSTS, [1, 4], runs)
    assert found.backbone_launch == 0
    assert found.backbone_token > 0
    assert found.decoder_image == pytest.approx(0, abs=1e-9)


def test_the_command_writes_what_the_simulation_reads(tmp_path: Path, golden_plan: Any) -> None:
    output, plan = tmp_path / "costs.json", str(golden_plan("mar"))
    options = ["--engine", "cpu", "--iterations", "4", "--max-images", "2", "--repeat", "1"]
    result = CliRunner().invoke(main, ["costs", plan, *options, "-o", str(output)])
    assert result.exit_code == 0, result.output
    measured = CostModel(**json.loads(output.read_text()))
    assert measured.iterations == 4
    assert measured.backbone_launch + measured.backbone_token > 0
    simulated = ["simulate", "--costs", str(output), "--requests", "5", "--load", "0.5"]
    assert CliRunner().invoke(main, simulated).exit_code == 0


def test_other_families_are_refused(golden_plan: Any) -> None:
    result = CliRunner().invoke(main, ["costs", str(golden_plan("xar")), "--engine", "cpu"])
    assert result.exit_code != 0
    assert "the cost model is that of MAR" in result.output
