from pathlib import Path

from click.testing import CliRunner

from disa.engines.plan import Plan
from disa.exporter.cli import main


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def test_an_engine_is_added_to_a_plan(pixel_plan: Path, tmp_path: Path) -> None:
    target = tmp_path / "with_engines.plan"
    wanted = ("--engine", "tensorrt-rtx", "--gpu", "sm_89", "--batch-size", "1:2:4")
    code, output = command("--add-engine", pixel_plan, "-o", target, *wanted)
    assert code == 0, output
    assert "backbone   tensorrt-rtx" in output
    with Plan.open(target) as plan:
        plan.check()
        assert {engine.graph for engine in plan.manifest.engines} == set(plan.manifest.graphs)
        assert all(engine.architectures == ("sm_89",) for engine in plan.manifest.engines)
    with Plan.open(pixel_plan) as plan:
        assert not plan.manifest.engines


def test_what_to_make_must_be_said(pixel_plan: Path) -> None:
    assert command()[0] == 2
    assert command("some.pth", "--add-engine", pixel_plan)[0] == 2
    code, output = command("--add-engine", pixel_plan, "--engine", "onnxruntime")
    assert code == 2
    assert "say what to build" in output
    code, output = command("--add-engine", pixel_plan, "--engine", "tensorrt-rtx", "--gpu", "tpu")
    assert code == 2
    assert "'tpu' is no GPU architecture" in output
    code, output = command("--add-engine", "missing.plan", "--gpu", "sm_89")
    assert code == 1
    assert "missing.plan" in output
