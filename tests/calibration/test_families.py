"""disa-calibrate from the command line, on the golden model of every family."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from disa.commands.calibrate import main
from disa.commands.run import main as run
from disa.engines.plan.plan import Plan
from disa.engines.plan.writer import PlanWriter
from disa.exporter.checkpoints.tokenizer import read_tokenizer
from disa.runtime.families.conditions.prompt import TOKENIZER_MEMBER
from disa.runtime.sampling.schedule import read_schedule

from ..conftest import ExportGolden
from ..tiny_tokenizer import write_vocabulary

OPTIONS = {
    "mar": ["--iterations", "4", "--cfg", "2"],
    "flowar_s": ["--guidance-interval", "0.7"],
    "xar": [],
    "harmon": ["--iterations", "3", "--size", "64", "--prompt", "a dog", "--prompt", "a cat"],
}
ITERATIONS = {"mar": 4, "flowar_s": 5, "xar": 4, "harmon": 3}


def plan_of(name: str, golden_plan: ExportGolden, folder: Path) -> Path:
    """The golden plan; Harmon's with a tokenizer in it."""
    golden = golden_plan(name)
    if name != "harmon":
        return golden
    data = read_tokenizer(write_vocabulary(folder / "tokenizer"), 200)
    path = folder / "text.plan"
    with Plan.open(golden) as plan, PlanWriter.extend(plan, path) as writer:
        writer.add(TOKENIZER_MEMBER, data)
    return path


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("goal", [["--cost", "time"], ["--match", "cost"]], ids=lambda g: g[1])
def test_every_family(
    name: str, goal: list[str], golden_plan: ExportGolden, tmp_path: Path
) -> None:
    plan, output = plan_of(name, golden_plan, tmp_path), tmp_path / "out" / "s.json"
    quick = ["--num", "2", "--reference-steps", "12", "--engine", "cpu", "--steps", "6:3"]
    command = [str(plan), *OPTIONS[name], *quick, *goal, "--plot", "-o", str(output)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert "adaptive" in result.output
    content = json.loads(output.read_text())
    assert len(content["steps"]) == ITERATIONS[name]
    for signal in content["signals"].values():
        assert len(signal["mean"]) == ITERATIONS[name]
    kind = "seconds" if "time" in goal else "calls"
    assert content["fitted"]["error"] <= content["baseline"]["error"] * 1.001
    assert content["fitted"][kind] <= content["baseline"][kind] * 1.001
    assert output.with_suffix(".png").stat().st_size > 10_000
    options = [part for part in OPTIONS[name] if part != "a cat"][: 4 if name == "harmon" else None]
    drawn = ["--prompt", "a dog"] if name == "harmon" else ["--class", "3"]
    arguments = [str(plan), *options, *drawn, "--schedule", str(output), "--engine", "cpu"]
    result = CliRunner().invoke(run, [*arguments, "-o", str(tmp_path / "run"), "--json"])
    assert result.exit_code == 0, result.output
    calls = json.loads(result.stdout)["stats"]["head_calls"]
    # FlowAR's grids of odd counts have a step less.
    assert calls == sum(
        count - count % 2 if name == "flowar_s" else count for count in read_schedule(output).counts
    )
