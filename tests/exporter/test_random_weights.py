from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from disa.errors import DisaError
from disa.exporter import random_weights
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.checkpoints.tokenizer import read_tokenizer
from disa.exporter.families.configs.flowar import FlowARConfig
from disa.exporter.families.configs.mar import MARConfig, configure, official_config
from disa.exporter.families.configs.xar import XARConfig
from disa.exporter.families.registry import find_family
from disa.exporter.random_weights import (
    SIZES,
    byte_tokenizer,
    random_checkpoint,
    random_plan,
    random_state,
)
from disa.exporter.random_weights import official_config as config_of
from disa.runtime.families.conditions.prompt import Tokenizer, prompt_text

TINY = replace(
    official_config("mar_b"),
    img_size=64,
    buffer_size=4,
    encoder_embed_dim=768,
    encoder_depth=1,
    encoder_num_heads=12,
    decoder_embed_dim=32,
    decoder_depth=2,
    decoder_num_heads=2,
    diffloss_d=1,
    diffloss_w=32,
    class_num=3,
    mlp_ratio=0.25,
)


STACKS = {
    "encoder_embed_dim": 48,
    "encoder_depth": 1,
    "encoder_num_heads": 3,
    "decoder_embed_dim": 48,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
    "vae_embed_dim": 16,
    "class_num": 3,
}
UNUSUAL = [
    FlowARConfig(**STACKS, diffloss_d=1, diffloss_w=64, cross=False),
    FlowARConfig(**STACKS, diffloss_d=2, diffloss_w=128, cross=True),
    XARConfig(**STACKS),
]


@pytest.mark.parametrize("config", UNUSUAL)
def test_a_checkpoint_tells_its_sizes(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "random.pth"
    weights = random_checkpoint(config, path)
    opened = open_checkpoint(path)
    assert opened.layout == "state dict"
    family = find_family(opened.state, path)
    assert family.configure(opened.state, None, opened.args) == config
    model = family.build(opened.state, config, path)
    assert weights == sum(parameter.numel() for parameter in model.parameters())


def test_mar_comes_in_a_training_checkpoint(tmp_path: Path) -> None:
    random_checkpoint(TINY, tmp_path / "random.pth")
    assert open_checkpoint(tmp_path / "random.pth").layout == "state dict, model"


def test_every_official_size_has_a_configuration() -> None:
    families = {name: type(config_of(name)).__module__ for name in SIZES}
    assert len(families) == 11
    for name, module in families.items():
        assert module == f"disa.exporter.families.configs.{SIZES[name]}"


def test_the_tokenizer_of_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(read_tokenizer(byte_tokenizer(tmp_path / "bytes"), 151936))
    text = prompt_text("a dög")
    special = text.count("<|im_start|>") * len("<|im_start|>")
    special += text.count("<|im_end|>") * len("<|im_end|>")
    assert len(tokenizer.encode("a dög")) == len(text.encode()) - special + 3
    assert max(tokenizer.encode("a dög")) < 259


def test_weights_are_the_same_for_a_seed() -> None:
    first, again, other = random_state(TINY), random_state(TINY), random_state(TINY, seed=1)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
    assert not torch.equal(first["z_proj.weight"], other["z_proj.weight"])


def test_every_layer_has_work() -> None:
    state = random_state(TINY)
    zero = [name for name, tensor in state.items() if not tensor.any()]
    assert all(name.endswith("bias") for name in zero)
    assert state["diffloss.net.final_layer.linear.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert state["encoder_norm.weight"].eq(1).all()


def test_a_plan_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = replace(TINY, decoder_embed_dim=768, decoder_num_heads=12)
    seen: list[MARConfig] = []

    def export(checkpoint: Path, plan: Path, **_options: object) -> None:
        opened = open_checkpoint(checkpoint)
        seen.append(configure(opened.state, None, opened.args))
        plan.write_bytes(b"a plan")

    monkeypatch.setattr(random_weights, "official_config", lambda shapes: small)
    monkeypatch.setattr(random_weights, "export", export)
    (tmp_path / "mar_b-random-0123.plan").write_bytes(b"an old one")
    (tmp_path / "mar_l-random-0123.plan").write_bytes(b"another size")
    path = random_plan("mar_b", tmp_path)
    assert random_plan("mar_b", tmp_path) == path
    assert seen == [small]
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, "mar_l-random-0123.plan"}


def test_unknown_shapes(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="no shapes named mar_x: choose one of mar_b"):
        random_plan("mar_x", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
