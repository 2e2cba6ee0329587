import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from disa.commands.export import main
from disa.commands.inspect import main as inspect
from disa.commands.verify import main as verify
from disa.engines.plan.plan import Plan
from disa.errors import DisaError
from disa.exporter import export as export_module
from disa.exporter.export import export
from disa.exporter.graphs.check import GraphError, enforce
from disa.exporter.vae.files import open_vae
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats

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
    assert (manifest.source["weights"], manifest.source["averaged"]) == ("model_ema", True)
    head = {"timestep", "head", "modulation", "modulated_head"}
    assert set(manifest.graphs) == {"backbone", "decoder", *head}
    assert manifest.defaults["steps"] == "50:5"
    assert manifest.defaults["num_iterations"] == 16


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
    scale = {"latent_scale": 0.5, "latent_shift": 0.25}
    plan = export(checkpoint, tmp_path / "m.plan", config=config, vae=vae, **scale).path
    with Plan.open(plan) as made:
        assert scale.items() <= made.manifest.source.items()
    result = Pipeline.from_plan(plan, "cpu")([1], num_iterations=2, steps="2")
    assert result.images is not None
    assert result.images.shape == (1, 32, 32, 3)
    decoder = open_vae(vae).build(16, 8, scale)
    with torch.no_grad():
        expected = decoder(torch.from_numpy(result.latents)).numpy().transpose(0, 2, 3, 1)
    pixels = np.clip(expected / 2 + 0.5, 0, 1) * 255
    assert np.abs(result.images - pixels).max() <= 1


def test_a_preview_is_what_the_vae_makes_of_the_latents_so_far(tmp_path: Path) -> None:
    checkpoint, config = vae_sized_checkpoint(tmp_path)
    vae = GOLDEN / "vae" / "kl16_tiny.ckpt"
    plan = export(checkpoint, tmp_path / "m.plan", config=config, vae=vae, check=False).path
    pipe, decoder = Pipeline.from_plan(plan, "cpu"), open_vae(vae).build(16, 8)
    family: Any = pipe.family
    options = pipe.options(num_iterations=3, steps="2")
    samples = family.start(pipe.requests([1, 2], options, 0, range(2)), Stats())
    shown = []
    for _ in range(3):
        family.step(samples, Stats())
        [(_, decoded)] = family._decode(samples)
        latents = np.asarray(decoded["latents"])
        with torch.no_grad():
            expected = decoder(torch.from_numpy(latents)).numpy().transpose(0, 2, 3, 1)
        pixels = np.clip((expected + 1) * 127.5, 0, 255)
        preview = np.stack(family.preview(samples))
        assert preview.shape == (2, 32, 32, 3)
        assert np.abs(preview - pixels).max() < 1
        shown.append((np.count_nonzero(latents), preview))
    known = [count for count, _ in shown]
    assert 0 < known[0] < known[1] < known[2]
    outputs = family.finish(samples, Stats())
    np.testing.assert_array_equal(shown[2][1], np.stack([output.image for output in outputs]))


def vae_sized_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]]:
    from disa.exporter.families.configs.mar import MARConfig
    from disa.exporter.families.mar import MAR

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
    torch.save(MAR(MARConfig(**config, **sizes)).state_dict(), folder / "plain.pth")
    return folder / "plain.pth", config


def test_a_wrong_vae_and_other_wrong_files(tmp_path: Path, pixel_checkpoint: Path) -> None:
    vae = GOLDEN / "vae" / "kl16_tiny.ckpt"
    cases = {
        "vae_embed_dim 16, vae_stride 8": [pixel_checkpoint, "--vae", vae],
        "no family that disa supports": [vae],
        "no such file": [tmp_path / "missing.pth"],
        "labels": [pixel_checkpoint, "--labels", tmp_path / "labels.txt"],
        "JSON": [GOLDEN / "mar/checkpoint.pth", "--config", pixel_checkpoint],
        "above the upper": [pixel_checkpoint, "--steps", "5:50"],
        "tensors do not show the attention heads": [GOLDEN / "mar/checkpoint.pth"],
        "did you mean encoder_num_heads": [
            GOLDEN / "mar/checkpoint.pth",
            "--config",
            misspelt(tmp_path),
        ],
        "add --vae": [pixel_checkpoint, "--latent-scale", 0.5],
        "no weights under the key 'emma'": [pixel_checkpoint, "--weights", "emma"],
        "no tensor without a place": [pixel_checkpoint, "--ignore-tensors", "loss.*"],
        "(qk-norm)": [with_qk_norm(tmp_path, pixel_checkpoint)],
    }
    for told, arguments in cases.items():
        result = command(*arguments, "-o", tmp_path / "out" / "x.plan")
        assert result.exit_code == 1, told
        assert told in result.output
        assert "Traceback" not in result.output
        assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def misspelt(folder: Path) -> Path:
    (folder / "misspelt.json").write_text('{"encoder_heads": 8}')
    return folder / "misspelt.json"


def with_qk_norm(folder: Path, pixel_checkpoint: Path) -> Path:
    content = torch.load(pixel_checkpoint, weights_only=False)
    content["model_ema"]["encoder_blocks.0.attn.q_norm.weight"] = torch.ones(8)
    torch.save(content, folder / "checkpoint-last.pth")
    return folder / "checkpoint-last.pth"


def test_class_names_must_be_as_many_as_classes(tmp_path: Path, pixel_checkpoint: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    result = command(pixel_checkpoint, "--labels", tmp_path / "labels.txt", "-o", tmp_path / "x")
    assert result.exit_code == 1
    assert "2 class names for 10 classes" in result.output


def test_a_model_without_classes_takes_no_class_names(tmp_path: Path) -> None:
    folder = GOLDEN / "harmon"
    with pytest.raises(DisaError, match="a harmon model has no classes: leave out"):
        export(
            folder / "checkpoint.pth",
            tmp_path / "x.plan",
            config=folder / "config.json",
            class_names=["one"],
        )


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_that_is_none_is_refused_before_the_export(
    tolerance: str, tmp_path: Path, pixel_checkpoint: Path
) -> None:
    result = command(pixel_checkpoint, "--tolerance", tolerance, "-o", tmp_path / "x.plan")
    assert result.exit_code == 1
    assert "the tolerance must be a number of at least 0" in result.output
    assert "reading" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 257, 7])
def test_class_names_that_a_manifest_cannot_hold(
    tmp_path: Path, pixel_checkpoint: Path, name: Any
) -> None:
    """They are refused before the graphs are exported."""
    stages: list[str] = []
    names = [*"abcdefghi", name]
    with pytest.raises(DisaError, match="name of class 9 must be text of at most 256 letters"):
        export(pixel_checkpoint, tmp_path / "x", class_names=names, report=stages.append)
    assert not any(stage.startswith("exporting") for stage in stages)


def test_one_pattern_is_not_a_list_of_letters(tmp_path: Path, pixel_checkpoint: Path) -> None:
    with pytest.raises(DisaError, match=r"has a name like 'loss\.\*'"):
        export(pixel_checkpoint, tmp_path / "x", ignore_tensors="loss.*")


def test_a_failed_export_leaves_nothing(
    tmp_path: Path, pixel_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.plan").write_text("an older plan")
    result = command(pixel_checkpoint, "-o", tmp_path / "x.plan")
    assert result.exit_code == 1
    assert "not a readable plan" in result.output
    options = ("--tolerance", "1e-12", "--overwrite")
    result = command(pixel_checkpoint, "-o", tmp_path / "x.plan", *options)
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
    for output in (tmp_path / "file" / "x.plan", Path("/proc/x.plan")):
        result = command(pixel_checkpoint, "-o", output)
        assert result.exit_code == 1
        assert "Traceback" not in result.output
        assert str(output) in result.output


def test_the_command_says_what_it_made(
    tmp_path: Path, pixel_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = with_qk_norm(tmp_path, pixel_checkpoint)
    options = ("--steps", "20:4", "--strategy", "cosine", "--cfg", "1.5", "-o", "plans/")
    result = command(source, *options, "--ignore-tensors", "*.q_norm.*")
    assert result.exit_code == 0, result.output
    assert "training checkpoint, model_ema" in result.output
    assert "backbone   differs from fp32 by" in result.output
    assert "ignored 1 of the checkpoint's tensors, such as encoder_blocks.0.attn.q" in result.output
    with Plan.open("plans/mar_32.plan") as plan:
        assert plan.manifest.name == "mar_32"
        assert plan.manifest.source["ignored"]["count"] == 1
        assert plan.manifest.defaults["steps"] == "20:4"
        assert plan.manifest.defaults["strategy"] == "cosine"
        assert plan.manifest.defaults["guidance_scale"] == 1.5
    assert os.listdir("plans") == ["mar_32.plan"]
    result = command(pixel_checkpoint, "-o", "plans/mar_32.plan")
    assert result.exit_code == 1
    assert "made from another file (checkpoint-last.pth)" in result.output
    shown = CliRunner().invoke(inspect, ["plans/mar_32.plan"]).output
    assert "weights    model_ema (averaged)" in shown
    assert "ignored    1 tensors like *.q_norm.*: encoder_blocks.0.attn.q_norm.weight" in shown
    verified = CliRunner().invoke(verify, ["plans/mar_32.plan", "--against", str(source)]).output
    assert "weights model_ema (averaged)\n" in verified
    assert "ignored 1 tensors, such as encoder_blocks.0.attn.q_norm.weight" in verified


def test_the_checkpoint_is_not_replaced(tmp_path: Path, pixel_checkpoint: Path) -> None:
    source = tmp_path / "m.pth"
    source.write_bytes(pixel_checkpoint.read_bytes())
    for options in ([], ["--overwrite"]):
        result = command(source, "-o", source, *options)
        assert result.exit_code == 1
        assert "is read for this plan" in result.output
    assert source.read_bytes() == pixel_checkpoint.read_bytes()


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

    from disa.exporter.checkpoints.checkpoint import open_checkpoint

    opened = open_checkpoint(pixel_checkpoint)
    state = {key: value.clone() for key, value in opened.state.items()}
    save_file(state, tmp_path / "model.safetensors")
    config = {key: value for key, value in opened.args.items() if key != "class_names"}
    plan = export(tmp_path / "model.safetensors", tmp_path / "s.plan", config=config, check=False)
    with Plan.open(plan.path) as made, Plan.open(pixel_plan) as wanted:
        member = wanted.manifest.graphs["backbone"].data[0]
        assert made.manifest.members[member] == wanted.manifest.members[member]
