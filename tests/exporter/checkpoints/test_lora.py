from typing import Any

import pytest
import torch
from torch import Tensor

from disa.errors import DisaError
from disa.exporter.checkpoints.lora import merge_lora

torch.manual_seed(0)
BASE = {"a.weight": torch.randn(6, 4), "a.bias": torch.randn(6), "b.weight": torch.randn(3)}
DOWN, UP = torch.randn(2, 4), torch.randn(6, 2)


def adapted(down: str, up: str, **others: Tensor) -> dict[str, Tensor]:
    return {**BASE, down: DOWN, up: UP, **{k.replace("__", "."): t for k, t in others.items()}}


@pytest.mark.parametrize(
    ("state", "options"),
    [
        (adapted("a.lora_A.default.weight", "a.lora_B.default.weight"), {"lora_alpha": 8}),
        (adapted("a.lora_A.weight", "a.lora_B.weight"), {"lora_alpha": 8.0}),
        (adapted("a.lora_A", "a.lora_B"), {"lora_alpha": 8}),
        (adapted("a.lora_down.weight", "a.lora_up.weight", a__alpha=torch.tensor(8.0)), {}),
    ],
)
def test_adapters_are_merged(state: dict[str, Tensor], options: dict[str, Any]) -> None:
    merged = merge_lora(state, options, "x.pth")
    assert merged.state.keys() == BASE.keys()
    torch.testing.assert_close(merged.state["a.weight"], BASE["a.weight"] + 4 * UP @ DOWN)
    assert torch.equal(merged.state["b.weight"], BASE["b.weight"])
    assert merged.describe() == {"layers": 1, "rank": 2, "scale": [4.0]}


def test_without_adapters_nothing_changes() -> None:
    merged = merge_lora(BASE, {"lora_alpha": 8}, "x.pth")
    assert merged.state == BASE
    assert merged.layers == 0


@pytest.mark.parametrize(
    ("state", "options", "sentence"),
    [
        (adapted("a.lora_A.weight", "a.lora_B.weight"), {}, "their scale lora_alpha is not known"),
        (BASE | {"a.lora_A.weight": DOWN}, {"lora_alpha": 8}, "one of its two factors"),
        (
            adapted("c.lora_A.weight", "c.lora_B.weight"),
            {"lora_alpha": 8},
            "weight c.weight is missing",
        ),
        (adapted("b.lora_A.weight", "b.lora_B.weight"), {"lora_alpha": 8}, "not have the shape"),
        (
            adapted("a.lora_A.x.weight", "a.lora_B.x.weight", a__lora_A__y__weight=DOWN),
            {"lora_alpha": 8},
            "several adapters",
        ),
        (
            adapted("a.lora_A.weight", "a.lora_B.weight", a__lora_magnitude_vector__x=DOWN),
            {"lora_alpha": 8},
            "another kind",
        ),
        (
            adapted("a.lora_A.weight", "a.lora_B.weight"),
            {"lora_alpha": 8, "use_rslora": True},
            "rslora",
        ),
        (
            adapted("a.lora_A.weight", "a.lora_B.weight"),
            {"lora_alpha": 8, "alpha_pattern": True},
            "alpha_pattern",
        ),
        (
            adapted("a.lora_A.weight", "a.lora_B.weight")
            | {"a.weight": torch.ones(5, 3, dtype=torch.int8)},
            {"lora_alpha": 8},
            "are not fp32, fp16 or bf16 .a.weight is int8",
        ),
    ],
)
def test_adapters_that_cannot_be_merged(
    state: dict[str, Tensor], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DisaError, match=rf"x.pth: .*{sentence}"):
        merge_lora(state, options, "x.pth")
