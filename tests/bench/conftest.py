"""A record and the sizes of a model, which the tests of disa-bench share."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from disa.bench.report import read_record
from disa.commands.bench import main
from disa.engines.plan.plan import Plan


@pytest.fixture(scope="session")
def record(pixel_plan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of one run of disa-bench over four variants."""
    output = tmp_path_factory.mktemp("bench") / "record.json"
    options = ["--engine", "cpu", "--batch-size", "2,1", "--steps", "3:2,2:2", "--threads", "1"]
    options += ["--iterations", "3", "--repeat", "2", "--warmup", "1", "--json", str(output)]
    result = CliRunner().invoke(main, [str(pixel_plan), *options])
    assert result.exit_code == 0, result.output
    assert "GFLOP/s" in result.output
    return read_record(output)


@pytest.fixture(scope="session")
def sizes(pixel_plan: Path) -> dict[str, int]:
    """The sizes of the model in the plan."""
    with Plan.open(pixel_plan) as plan:
        return dict(plan.manifest.model)
