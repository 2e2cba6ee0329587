import pytest
import torch

from disa.errors import DisaError
from disa.exporter.families.fit import check_places

STATE = {
    "w": torch.ones(2),
    "blocks.0.attn.q_norm.weight": torch.ones(2),
    "loss.logvar": torch.ones(2),
    "n_averaged": torch.tensor(3),
}


def test_tensors_without_a_place_say_what_they_look_like() -> None:
    with pytest.raises(
        DisaError,
        match=r"x.pth: 2 of its tensors .*q_norm.*\(qk-norm\) and a part of the training loss.*"
        "--ignore-tensors",
    ):
        check_places(STATE, ["w"], [], "x.pth", "mar")


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("blocks.0.attn.k_norm.bias", "qk-norm"),
        ("blocks.0.ls1.gamma", "LayerScale"),
        ("blocks.0.gamma_2", "LayerScale"),
        ("a.lora_A.weight", "LoRA"),
        ("vae.decoder.x", "a VAE"),
        ("blocks.0.attn.rope.freqs", "rotary"),
        ("ema.x", "averaged"),
        ("experts.0.w1", "another architecture"),
    ],
)
def test_looks(name: str, look: str) -> None:
    with pytest.raises(DisaError, match=look):
        check_places({name: torch.ones(2)}, [], [], "x.pth", "mar")


def test_ignored_tensors_are_remembered() -> None:
    ignored = check_places(STATE, ["w"], ["*_norm.*", "loss.*"], "x.pth", "mar")
    assert ignored.tensors == ("blocks.0.attn.q_norm.weight", "loss.logvar")
    assert ignored.describe() == {
        "patterns": ["*_norm.*", "loss.*"],
        "count": 2,
        "tensors": ["blocks.0.attn.q_norm.weight", "loss.logvar"],
    }
    assert check_places({"w": torch.ones(1)}, ["w"], [], "x.pth", "mar").tensors == ()


def test_a_pattern_must_match_something() -> None:
    with pytest.raises(DisaError, match="'w'"):
        check_places(STATE, ["w"], ["w", "*norm*", "loss*"], "x.pth", "mar")
