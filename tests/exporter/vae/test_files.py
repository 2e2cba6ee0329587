import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from disa.errors import DisaError
from disa.exporter.vae.decoder import KLConfig, KLDecoder, build, configure
from disa.exporter.vae.files import open_vae
from disa.exporter.vae.latents import LATENT_SCALE, LatentScale, split_latent_scale

PLAIN = KLConfig(
    latent_channels=4, inner_channels=4, channels=(32, 64), res_blocks=2, out_channels=3
)
ATTENTION = replace(PLAIN, attention=(1,))
FLUX = replace(PLAIN, has_inner=False)
CONFIGS = {"plain": PLAIN, "attention": ATTENTION, "without post_quant_conv": FLUX}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

State = dict[str, Tensor]


def state_of(config: KLConfig) -> State:
    torch.manual_seed(0)
    return dict(KLDecoder(config).state_dict())


def in_diffusers(state: State, old: bool = False) -> State:
    """The layout of diffusers, written down independently of the code under test."""
    levels = 1 + max(int(m[1]) for key in state if (m := re.match(r"decoder\.up\.(\d+)", key)))
    attention = {
        "norm": "group_norm",
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "proj_out": "to_out.0",
    }
    result = {}
    for key, tensor in state.items():
        key = key.replace("decoder.mid.block_1", "decoder.mid_block.resnets.0")
        key = key.replace("decoder.mid.block_2", "decoder.mid_block.resnets.1")
        key = key.replace("decoder.mid.attn_1", "decoder.mid_block.attentions.0")
        key = key.replace("decoder.norm_out", "decoder.conv_norm_out")
        if match := re.match(r"decoder\.up\.(\d+)\.(.*)", key):
            rest = match[2].replace("block.", "resnets.").replace("attn.", "attentions.")
            rest = rest.replace("upsample.conv", "upsamplers.0.conv")
            key = f"decoder.up_blocks.{levels - 1 - int(match[1])}.{rest}"
        key = key.replace("nin_shortcut", "conv_shortcut")
        if match := re.match(r"(.*attentions\.\d+)\.(\w+)\.(weight|bias)", key):
            layer = attention[match[2]]
            key = f"{match[1]}.{OLD_NAMES.get(layer, layer) if old else layer}.{match[3]}"
            tensor = tensor.flatten(1) if tensor.ndim == 4 else tensor
        result[key] = tensor
    return result


def image(decoder: KLDecoder) -> Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        result: Tensor = decoder(torch.randn(2, 4, 3, 5))
    return result


def expected(config: KLConfig) -> Tensor:
    return image(build(state_of(config), config))


@pytest.mark.parametrize("old", [False, True], ids=["names of today", "old names"])
@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers(tmp_path: Path, name: str, old: bool) -> None:
    config = CONFIGS[name]
    state = in_diffusers(state_of(config), old)
    state["encoder.conv_in.weight"] = torch.ones(1)
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    opened = open_vae(tmp_path)
    assert opened.config == config
    assert torch.equal(image(opened.build(4, 2)), expected(config))


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", "module.", "model.", ""])
@pytest.mark.parametrize("name", CONFIGS)
def test_official_files(tmp_path: Path, name: str, prefix: str) -> None:
    config = CONFIGS[name]
    state = {prefix + key: tensor for key, tensor in state_of(config).items()}
    state |= {f"{prefix}loss.logvar": torch.ones(()), "model.diffusion_model.x": torch.ones(2)}
    torch.save({"state_dict": state, "global_step": 3, "callbacks": {}}, tmp_path / "v.ckpt")
    assert torch.equal(image(open_vae(tmp_path / "v.ckpt").build(4, 2)), expected(config))


def test_an_average_of_another_model_in_the_file_does_not_matter(tmp_path: Path) -> None:
    """Latent diffusion's checkpoints hold the denoiser, its average and the VAE."""
    state = {f"first_stage_model.{key}": tensor for key, tensor in state_of(PLAIN).items()}
    state |= {"model.diffusion_model.in.0.weight": torch.ones(2)}
    state |= {
        "model_ema.diffusion_modelin0weight": torch.ones(2),
        "model_ema.decay": torch.ones(()),
    }
    torch.save({"state_dict": state}, tmp_path / "v.ckpt")
    assert torch.equal(image(open_vae(tmp_path / "v.ckpt").build(4, 2)), expected(PLAIN))


def test_attention_changes_the_image() -> None:
    """The levels' attention is really run, after each of their blocks."""
    state = state_of(ATTENTION)
    with_attention = image(build(state, ATTENTION))
    still = {k: torch.zeros_like(t) if ".attn.1.proj_out" in k else t for k, t in state.items()}
    assert not torch.allclose(image(build(still, ATTENTION)), with_attention, atol=1e-4)


def test_a_pipeline_of_diffusers_holds_its_vae(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text("{}")
    torch.save(in_diffusers(state_of(PLAIN)), tmp_path / "vae" / "diffusion_pytorch_model.bin")
    assert open_vae(tmp_path).config == PLAIN


def with_configuration(folder: Path, **content: object) -> Path:
    save_file(in_diffusers(state_of(PLAIN)), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **content}))
    return folder


def test_the_scale_that_a_vae_states_must_be_confirmed(tmp_path: Path) -> None:
    opened = open_vae(with_configuration(tmp_path, scaling_factor=0.18215, shift_factor=None))
    with pytest.raises(DisaError, match=r"latent_scale 0.18215.*0.2325 .*--latent-scale"):
        opened.build(4, 2)
    assert opened.build(4, 2, {"latent_scale": 0.18215}).latents == LatentScale(0.18215)
    assert opened.build(4, 2, {"latent_scale": 0.2325}).latents == LatentScale(LATENT_SCALE)


def test_the_shift_that_a_vae_states_must_be_confirmed(tmp_path: Path) -> None:
    opened = open_vae(with_configuration(tmp_path, scaling_factor=0.2325, shift_factor=0.1159))
    with pytest.raises(DisaError, match="--latent-shift"):
        opened.build(4, 2)
    assert opened.build(4, 2, {"latent_shift": 0.1159}).latents.shift == 0.1159


def test_the_scale_is_also_stated_beside_the_file_of_a_vae(tmp_path: Path) -> None:
    folder = with_configuration(tmp_path, scaling_factor=0.18215)
    file = folder / "diffusion_pytorch_model.safetensors"
    with pytest.raises(DisaError, match=r"latent_scale 0.18215.*--latent-scale"):
        open_vae(file).build(4, 2)
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKL", "latents_mean": [1]}')
    with pytest.raises(DisaError, match="latents_mean"):
        open_vae(file)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"scaling_factor": 9}', '{"_class_name": "Other", "scaling_factor": 9}']
)
def test_a_configuration_beside_a_vae_may_be_that_of_another_model(
    tmp_path: Path, content: str
) -> None:
    with_configuration(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert open_vae(tmp_path / "diffusion_pytorch_model.safetensors").stated == {}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"_class_name": "AutoencoderDC"}, "AutoencoderDC, not AutoencoderKL"),
        ({"act_fn": "gelu"}, "act_fn gelu"),
        ({"norm_num_groups": 16}, "norm_num_groups 16"),
        ({"latents_mean": [0.5]}, r"latents_mean \[0.5\], but only None"),
        ({"latents_std": [2.0]}, "latents_std"),
        ({"scaling_factor": "big"}, "positive number"),
        ({"scaling_factor": 0}, "positive number"),
    ],
)
def test_configurations_of_other_decoders(
    tmp_path: Path, content: dict[str, object], sentence: str
) -> None:
    with pytest.raises(DisaError, match=sentence):
        open_vae(with_configuration(tmp_path, **content))


def test_scale_and_shift_undo_those_of_training() -> None:
    state, latents = state_of(PLAIN), torch.randn(1, 4, 3, 5)
    scaled = build(state, PLAIN, latents=LatentScale(0.5, 0.25))
    plain = build(state, PLAIN, latents=LatentScale(1.0))
    with torch.no_grad():
        torch.testing.assert_close(scaled((latents - 0.25) * 0.5), plain(latents))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_of_pixels(channels: int) -> None:
    config = replace(PLAIN, out_channels=channels)
    assert configure(state_of(config), "x").out_channels == channels


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_no_image(channels: int) -> None:
    state = state_of(PLAIN) | {"decoder.conv_out.weight": torch.ones(channels, 32, 3, 3)}
    with pytest.raises(DisaError, match=rf"pixels of {channels} channels"):
        configure(state, "x")


def test_a_codebook_is_no_kl_autoencoder(tmp_path: Path) -> None:
    state = state_of(PLAIN) | {"quantize.embedding.weight": torch.ones(3, 4)}
    torch.save(state, tmp_path / "v.ckpt")
    with pytest.raises(DisaError, match="codebook"):
        open_vae(tmp_path / "v.ckpt")


def test_what_the_configuration_and_the_options_say() -> None:
    assert split_latent_scale({"a": 1, "vae_scale": 0.5}) == ({"a": 1}, {"latent_scale": 0.5})
    assert split_latent_scale({"latent_shift": 0.1}, 0.3) == (
        {},
        {"latent_shift": 0.1, "latent_scale": 0.3},
    )
    assert split_latent_scale(None, 0.3, 0.0) == ({}, {"latent_scale": 0.3, "latent_shift": 0.0})
    for config, scale in (({"latent_scale": 0.2}, 0.3), (None, -1.0), (None, float("nan"))):
        with pytest.raises(DisaError, match="latent_scale"):
            split_latent_scale(config, scale)
