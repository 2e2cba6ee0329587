import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from disa.engines.plan import Plan
from disa.errors import DisaError
from disa.exporter import export as export_module
from disa.exporter.check import GraphError, enforce
from disa.exporter.cli import main
from disa.exporter.export import export
from disa.runtime.pipeline import Pipeline

from ..conftest import GOLDEN

Plans = Callable[..., Path]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_manifest_tells_what_the_plan_is(pixel_plan: Path, pixel_checkpoint: Path) -> None:
    with Plan.open(pixel_plan) as plan:
        manifest = plan.manifest
        plan.check()
    assert manifest.family == "mar"
    assert manifest.precision == "fp32"
    assert manifest.class_names is not None
    assert manifest.class_names[7] == "sneaker"
    assert manifest.tokens["count"] == 16
    assert manifest.source["file"] == "pixels.pth"
    assert "model_ema" in manifest.source["layout"]
    assert set(manifest.graphs) == {"backbone", "timestep", "head", "decoder"}
    assert manifest.defaults["steps"] == "50:5"
    assert manifest.defaults["iterations"] == 16


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_is_smaller_and_close(precision: str, golden_plan: Plans) -> None:
    full, reduced = golden_plan("mar_patch2"), golden_plan("mar_patch2", precision)
    assert reduced.stat().st_size < 0.75 * full.stat().st_size
    with Plan.open(reduced) as plan:
        assert plan.manifest.precision == precision
    if precision == "fp16":
        options: dict[str, Any] = {"num_iterations": 4, "steps": "4:2"}
        exact = Pipeline.from_plan(full, "cpu")([1, 2], **options).latents
        rounded = Pipeline.from_plan(reduced, "cpu")([1, 2], **options).latents
        error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
        assert 1e-7 < error < 2e-2


def test_a_plan_with_a_vae_decodes(tmp_path: Path) -> None:
    checkpoint, config = vae_sized_checkpoint(tmp_path)
    vae = GOLDEN / "vae" / "kl16_tiny.ckpt"
    plan = export(checkpoint, tmp_path / "m.plan", config=config, vae=vae).path
    result = Pipeline.from_plan(plan, "cpu")([1], num_iterations=2, steps="2")
    assert result.images is not None
    assert result.images.shape == (1, 32, 32, 3)


def vae_sized_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    from disa.exporter.mar import MAR
    from disa.exporter.mar_config import Config

    config = {
        "img_size": 32,
        "vae_stride": 8,
        "patch_size": 1,
        "vae_embed_dim": 16,
        "encoder_num_heads": 2,
        "decoder_num_heads": 2,
    }
    sizes = {"class_num": 3, "buffer_size": 2, "diffloss_d": 1, "diffloss_w": 16}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_embed_dim": 16, f"{side}_depth": 1}
    torch.manual_seed(0)
    torch.save(MAR(Config(**config, **sizes)).state_dict(), folder / "plain.pth")
    return folder / "plain.pth", config


def test_a_wrong_vae_and_other_wrong_files(tmp_path: Path, pixel_checkpoint: Path) -> None:
    vae = GOLDEN / "vae" / "kl16_tiny.ckpt"
    cases = {
        "latent channels": [pixel_checkpoint, "--vae", vae],
        "none of the families": [vae],
        "no such file": [tmp_path / "missing.pth"],
        "labels": [pixel_checkpoint, "--labels", tmp_path / "labels.txt"],
        "JSON": [GOLDEN / "mar/checkpoint.pth", "--config", pixel_checkpoint],
        "above the upper": [pixel_checkpoint, "--steps", "5:50"],
        "heads are in no tensor": [GOLDEN / "mar/checkpoint.pth"],
    }
    for told, arguments in cases.items():
        result = command(*arguments, "-o", tmp_path / "out" / "x.plan")
        assert result.exit_code == 1, told
        assert told in result.output
        assert "Traceback" not in result.output
        assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_class_names_must_be_as_many_as_classes(tmp_path: Path, pixel_checkpoint: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    result = command(pixel_checkpoint, "--labels", tmp_path / "labels.txt", "-o", tmp_path / "x")
    assert result.exit_code == 1
    assert "2 class names for 10 classes" in result.output


def test_a_failed_export_leaves_nothing(
    tmp_path: Path, pixel_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.plan").write_text("an older plan")
    result = command(pixel_checkpoint, "-o", tmp_path / "x.plan", "--tolerance", "1e-12")
    assert result.exit_code == 1
    assert "differs from the fp32 model" in result.output
    assert (tmp_path / "x.plan").read_text() == "an older plan"

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "check_graph", interrupted)
    result = command(pixel_checkpoint, "-o", tmp_path / "y.plan")
    assert result.exit_code == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.plan"]


def test_unwritable_output(tmp_path: Path, pixel_checkpoint: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "x.plan", Path("/proc/x.plan"), tmp_path):
        result = command(pixel_checkpoint, "-o", output)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert str(output) in result.output


def test_the_command_says_what_it_made(
    tmp_path: Path, pixel_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = torch.load(pixel_checkpoint, weights_only=False)
    content["model_ema"]["encoder_blocks.0.attn.q_norm.weight"] = torch.ones(8)
    torch.save(content, "small.pth")
    result = command("small.pth", "--steps", "20:4", "--strategy", "cosine", "--cfg", "1.5")
    assert result.exit_code == 0, result.output
    assert "training checkpoint" in result.output
    assert "backbone   differs from fp32 by" in result.output
    unused = "1 of the checkpoint's tensors, such as encoder_blocks.0.attn.q_norm.weight"
    assert f"not used: {unused}: is it a variant of mar?" in result.output
    with Plan.open("engines/small.plan") as plan:
        assert plan.manifest.name == "small"
        assert plan.manifest.defaults["steps"] == "20:4"
        assert plan.manifest.defaults["strategy"] == "cosine"
        assert plan.manifest.defaults["cfg"] == 1.5
    assert os.listdir("engines") == ["small.plan"]


def test_a_plan_is_the_same_every_time(
    pixel_plan: Path, pixel_checkpoint: Path, tmp_path: Path
) -> None:
    again = export(pixel_checkpoint, tmp_path / pixel_plan.name, check=False).path
    with Plan.open(pixel_plan) as first, Plan.open(again) as second:
        assert first.manifest.members == second.manifest.members


def test_beyond_the_tolerance() -> None:
    errors = [GraphError("head", {"rows": 4}, 3e-3), GraphError("backbone", {}, 1e-5)]
    enforce(errors, 1e-2)
    with pytest.raises(DisaError, match=r"head graph differs .* 3\.0e-03"):
        enforce(errors, 1e-3)
    with pytest.raises(DisaError):
        enforce([GraphError("head", {}, float("nan"))], 1e-2)


def test_safetensors_and_plain_state_dicts_give_the_same_plan(
    tmp_path: Path, pixel_checkpoint: Path, pixel_plan: Path
) -> None:
    from safetensors.torch import save_file

    from disa.exporter.checkpoint import open_checkpoint

    opened = open_checkpoint(pixel_checkpoint)
    state = {key: value.clone() for key, value in opened.state.items()}
    save_file(state, tmp_path / "model.safetensors")
    config = {key: value for key, value in opened.args.items() if key != "class_names"}
    plan = export(tmp_path / "model.safetensors", tmp_path / "s.plan", config=config, check=False)
    with Plan.open(plan.path) as made, Plan.open(pixel_plan) as wanted:
        member = wanted.manifest.graphs["backbone"].data[0]
        assert made.manifest.members[member] == wanted.manifest.members[member]
