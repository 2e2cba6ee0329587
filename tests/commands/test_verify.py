import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from disa.commands.verify import main

from ..conftest import GOLDEN, references

Plans = Callable[..., Path]


def verify(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def with_references(paths: list[Path]) -> list[object]:
    return [part for path in paths for part in ("--reference", path)]


def recorded_calls(step: dict[str, int]) -> int:
    """Head calls of a recorded iteration; 0 where the file does not tell (DPM-Solver)."""
    for name in ("diffusion_steps", "head_calls", "calls"):
        if name in step:
            return step[name]
    return step["draws"] - 1


MODELS = {"mar": 10, "mar_patch2": 1, "flowar_s": 3, "flowar_l": 1, "xar": 2, "harmon": 2}


@pytest.mark.parametrize("model", MODELS)
def test_every_recorded_run_is_reproduced(model: str, golden_plan: Plans) -> None:
    paths = references(model)
    code, output = verify(golden_plan(model), *with_references(paths), "--json")
    report = json.loads(output)
    assert code == 0
    assert report["worst"] < 3e-5
    assert len(report["references"]) == len(paths) == MODELS[model]
    for path in paths:
        entries = report["references"][str(path)]
        steps = json.loads(str(np.load(path)["meta"]))["steps"]
        assert len(entries) == len(steps) + 1
        made = [entry["head_calls"] for entry in entries[:-1]]
        recorded = [recorded_calls(step) for step in steps]
        assert made == recorded or set(recorded) == {0}


def test_a_table_and_a_last_line(golden_plan: Plans) -> None:
    path = GOLDEN / "mar_patch2" / "linear_cfg.npz"
    code, output = verify(golden_plan("mar_patch2"), "--reference", path)
    assert code == 0
    assert "iteration  head calls  relative error" in output
    last = output.strip().splitlines()[-1]
    assert last.startswith("passed: worst relative error")
    assert "1 reference " in last


@pytest.mark.parametrize("option", ["--vae", "--config", "--weights"])
def test_options_of_the_checkpoint_need_the_checkpoint(option: str) -> None:
    code, output = verify("x.plan", "--reference", "x.npz", option, "x")
    assert code == 2
    assert f"{option} belongs to --against CHECKPOINT" in output


def test_a_difference_fails(golden_plan: Plans, tmp_path: Path) -> None:
    """Other latents, and a tolerance that nobody meets."""
    plan, path = golden_plan("mar_patch2"), GOLDEN / "mar_patch2" / "linear_cfg.npz"
    changed = tmp_path / "changed.npz"
    arrays = dict(np.load(path))
    arrays["latents"] = arrays["latents"] * 1.5
    np.savez(changed, **arrays)
    code, output = verify(plan, "--reference", changed)
    assert code == 1
    assert "FAILED: worst relative error 3.33e-01" in output
    code, _ = verify(plan, "--reference", path, "--tolerance", "1e-9")
    assert code == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sampler": "euler"}, "sampler euler is unknown"),
        ({"upper": 12}, "denoising steps"),
        ({"num_iter": 6}, "cosine rule"),
        ({"cfg": "much"}, "not usable"),
        ({"upper": 2}, "above the upper"),
        ({"batch": 5}, "5"),
        ({"batch": None}, "its batch is not a positive whole number"),
        ({"batch": 0}, "its batch is not"),
        ({"steps": []}, "its meta has no steps"),
        ({"steps": [3, 3]}, "has no rows"),
        ({"steps": "all"}, "has no rows"),
    ],
)
def test_references_that_do_not_fit(
    change: dict[str, object], told: str, golden_plan: Plans, tmp_path: Path
) -> None:
    arrays = dict(np.load(GOLDEN / "mar_patch2" / "linear_cfg.npz"))
    meta = {**json.loads(str(arrays["meta"])), **change}
    arrays["meta"] = np.array(json.dumps(meta))
    np.savez(tmp_path / "odd.npz", **arrays)
    code, output = verify(golden_plan("mar_patch2"), "--reference", tmp_path / "odd.npz")
    assert code == 1
    assert told in output
    assert "Traceback" not in output


def test_references_that_are_none(golden_plan: Plans, tmp_path: Path) -> None:
    plan = golden_plan("mar_patch2")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").write_bytes(b"")
    whole = (GOLDEN / "mar_patch2" / "linear_cfg.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    other_model = GOLDEN / "mar" / "linear_cfg.npz"
    for path in [*sorted(tmp_path.iterdir()), tmp_path / "missing.npz", tmp_path, other_model]:
        code, output = verify(plan, "--reference", path)
        assert code == 1, path
        assert str(path) in output
        assert "Traceback" not in output


def test_something_must_be_compared(golden_plan: Plans) -> None:
    code, output = verify(golden_plan("mar_patch2"))
    assert code == 2
    assert "--reference" in output


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_plan_against_its_checkpoint(precision: str, golden_plan: Plans) -> None:
    plan, checkpoint = golden_plan("mar_patch2", precision), GOLDEN / "mar_patch2/checkpoint.pth"
    code, output = verify(plan, "--against", checkpoint, "--json")
    report = json.loads(output)
    assert code == 0
    assert {entry["graph"] for entry in report["graphs"]} == {
        "backbone",
        "timestep",
        "head",
        "modulation",
        "modulated_head",
        "decoder",
    }
    assert any(entry["sizes"].get("batch", 0) > 1 for entry in report["graphs"])
    assert (report["worst"] < 1e-5) == (precision == "fp32")


def test_a_plan_against_another_checkpoint(golden_plan: Plans) -> None:
    plan = golden_plan("mar_patch2")
    code, output = verify(plan, "--against", GOLDEN / "mar/checkpoint.pth")
    assert code == 1
    assert "tensors have" in output
    code, output = verify(plan, "--against", GOLDEN / "xar/checkpoint.pth")
    assert code == 1
