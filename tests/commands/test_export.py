from pathlib import Path

import pytest
from click.testing import CliRunner

from disa.commands.export import main
from disa.engines.plan.plan import Plan
from disa.engines.plan.traits import HOST_ONLY

from ..conftest import GOLDEN


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
        graphs = plan.manifest.graphs
        on_gpu = {name for name in graphs if graphs[name].traits.role not in HOST_ONLY}
        assert {engine.graph for engine in plan.manifest.engines} == on_gpu
        assert all(engine.architectures == ("sm_89",) for engine in plan.manifest.engines)
    with Plan.open(pixel_plan) as plan:
        assert not plan.manifest.engines


def test_what_to_make_must_be_said(pixel_plan: Path) -> None:
    assert command()[0] == 2
    assert command("some.pth", "--add-engine", pixel_plan)[0] == 2
    code, output = command("--add-engine", pixel_plan, "--engine", "onnxruntime")
    assert code == 2
    assert "choose what to build" in output
    code, output = command("--add-engine", pixel_plan, "--engine", "tensorrt-rtx", "--gpu", "tpu")
    assert code == 2
    assert "'tpu' is not a GPU architecture" in output
    code, output = command("--add-engine", "missing.plan", "--gpu", "sm_89")
    assert code == 1
    assert "missing.plan" in output


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["x.pth", "--calibration-images", 4],
            "fp32 needs no calibration: leave out --calibration",
        ),
        (["x.pth", "--fp16", "--prompt", "a cat"], "fp16 needs no calibration: leave out --prompt"),
        (["x.pth", "--engine", "onnxruntime", "--gpu", "sm_89"], "no engines are built: leave out"),
        (["x.pth", "--engine", "onnxruntime", "--workspace", 9], "no engines are built: leave out"),
        (["x.pth", "--no-check", "--tolerance", 0.1], "compares nothing: leave out --tolerance"),
        (["x.pth", "--int8", "--no-check", "--token-tolerance", 1], "leave out --token-tolerance"),
        (["--add-engine", "x.plan", "--gpu", "sm_89", "--vae", "kl16.ckpt"], "leave out --vae"),
        (["--add-engine", "x.plan", "--gpu", "sm_89", "--fp16"], "changes nothing else"),
        (["--add-engine", "x.plan", "--gpu", "sm_89", "--cfg", 2], "leave out --guidance-scale"),
        (["--add-engine", "x.plan", "--gpu", "sm_89", "--no-check"], "leave out --no-check"),
    ],
)
def test_options_without_an_effect_are_refused(options: list[object], words: str) -> None:
    code, text = command(*options)
    assert code == 2
    assert words in " ".join(text.split())


@pytest.mark.parametrize(
    ("model", "options", "code", "words"),
    [
        ("xar", ["--sampler", "ddim"], 1, "a xar model has no option sampler"),
        ("mar", ["--size", 512], 1, "a mar model has no option size"),
        ("mar", ["--num-iterations", 100], 1, "100 iterations are more than the 64 tokens"),
        ("mar", ["--strategy", "adaptive", "--sampler", "dpm-solver"], 1, "ddpm and ddim"),
        ("mar", ["--steps", "5:50"], 1, "above the upper"),
        ("mar", ["--guidance-scale", 0], 2, "guidance scale must be above 0"),
        ("mar", ["--cfg", "nan"], 2, "guidance scale must be above 0 and below 1000, not nan"),
        ("mar", ["--temperature", 11], 2, "temperature must be 0 to 10, not 11"),
    ],
)
def test_defaults_that_no_run_would_take_are_not_exported(
    model: str, options: list[object], code: int, words: str, tmp_path: Path
) -> None:
    folder, output = GOLDEN / model, tmp_path / "never.plan"
    arguments = [folder / "checkpoint.pth", "--config", folder / "architecture.json"]
    found, text = command(*arguments, "-o", output, *options)
    assert found == code
    assert words in " ".join(text.split())
    assert not list(tmp_path.iterdir())
