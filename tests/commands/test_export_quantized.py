from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from disa.commands.export import main
from disa.commands.inspect import main as inspect
from disa.engines.gpu.profile import Range
from disa.engines.plan.plan import Plan
from disa.engines.tensorrt.build import EngineOptions, add_engines
from disa.errors import DisaError

Plans = Callable[..., Path]
FEW = ("--calibration-images", "2")


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_a_checkpoint_is_exported_and_quantised(pixel_checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.plan"
    limits = ("--token-tolerance", 0.9, "--spread-tolerance", 0.9)
    code, output = command(
        pixel_checkpoint, "--int8", *FEW, *limits, "--iterations", 4, "--steps", "6:2", "-o", target
    )
    assert code == 0, output
    assert "backbone   differs from fp32 by" in output
    assert "matmuls in int8, differs from fp32 by" in output
    assert "times as fast on this CPU" in output
    assert "standard deviations from those sampled in fp32 (0.9 allowed)" in output
    assert "(90.0% allowed)" in output
    with Plan.open(target) as plan:
        plan.check()
        assert (plan.manifest.precision, plan.manifest.name) == ("int8", "small")
        assert plan.manifest.defaults["num_iterations"] == 4
        assert plan.manifest.raw["quantization"]["images"] == 2
        assert plan.manifest.source["file"] == "pixels.pth"
        assert plan.manifest.class_names is not None
    assert [path.name for path in tmp_path.iterdir()] == ["small.plan"]
    shown = CliRunner().invoke(inspect, [str(target)]).output
    assert "precision  int8" in shown
    assert "quantized  backbone: products" in shown


def test_a_plan_is_quantised_without_its_checkpoint(pixel_plan: Path, tmp_path: Path) -> None:
    copy = tmp_path / "p.plan"
    copy.write_bytes(pixel_plan.read_bytes())
    code, output = command(copy, "--fp8", *FEW, "--no-check")
    assert code == 0, output
    assert "differs" not in output
    with Plan.open(tmp_path / "p.fp8.plan") as plan, Plan.open(copy) as source:
        assert plan.manifest.precision == "fp8"
        assert plan.manifest.defaults == source.manifest.defaults
        assert plan.manifest.raw["quantization"]["token_spread"] is None


def test_wrong_use(pixel_plan: Path, pixel_checkpoint: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "x.plan")
    for wanted, told, arguments in (
        (2, "add --int8 or --fp8", (pixel_plan,)),
        (2, "leave those options out", (pixel_plan, "--int8", "--cfg", 2)),
        (2, "leave those options out", (pixel_plan, "--int8", "--latent-scale", 0.5)),
        (2, "leave those options out", (pixel_plan, "--int8", "--latent-shift", 0)),
        (2, "leave those options out", (pixel_plan, "--int8", "--cached-backbone")),
        (2, "calibration-images", (pixel_plan, "--int8", "--calibration-images", 0)),
        (2, "token-tolerance", (pixel_plan, "--int8", "--token-tolerance", 0)),
        (1, "must be above 0", (pixel_plan, "--int8", "--tolerance", -1)),
        (1, "no plan at", (tmp_path / "missing.plan", "--int8")),
        (1, "not a plan", (_text(tmp_path.parent / "text.plan"), "--int8")),
        (1, "sm_86 does not compute in fp8", (pixel_checkpoint, "--fp8", "--gpu", "sm_86")),
        (1, "0.001 is allowed", (pixel_plan, "--int8", *FEW, "--token-tolerance", 0.001)),
    ):
        code, said = command(*arguments, *output)
        assert (code, told in said) == (wanted, True), said
        assert not list(tmp_path.iterdir())


def _text(path: Path) -> Path:
    path.write_text("no plan")
    return path


@pytest.mark.parametrize(
    ("precision", "architectures"),
    [("int8", ("sm_80", "sm_86", "sm_89", "sm_120")), ("fp8", ("sm_89", "sm_120"))],
)
def test_tensorrt_rtx_builds_it(
    precision: str,
    architectures: tuple[str, ...],
    golden_plan: Plans,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISA_CACHE", str(tmp_path / "cache"))
    target = tmp_path / "mar.plan"
    code, output = command(golden_plan("mar"), f"--{precision}", *FEW, "--no-check", "-o", target)
    assert code == 0, output
    options = EngineOptions("tensorrt-rtx", batch=Range(1, 2, 4))
    built = add_engines(target, options)
    assert {engine.info.graph for engine in built} == {"backbone", "timestep", "head", "decoder"}
    for engine in built:
        assert engine.info.precision == precision
        assert engine.info.architectures == architectures
        assert engine.info.details["least_sm"] == int(architectures[0].removeprefix("sm_"))
    if precision == "fp8":
        with pytest.raises(DisaError, match="sm_86 does not compute in fp8: choose sm_89 or later"):
            add_engines(target, EngineOptions("tensorrt-rtx", gpus=(86, 89)))
