import pytest
import torch
from torch import Tensor, nn

from disa.errors import DisaError
from disa.exporter.checkpoints.state_dict import check_finite, count_blocks, load_strict, shape_of


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {key: torch.randn(tensor.shape) for key, tensor in model().state_dict().items()}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_are_loaded_and_cast(device: str, dtype: torch.dtype) -> None:
    weights = {key: tensor.to(dtype) for key, tensor in state().items()}
    with torch.device(device):
        module = model()
    load_strict(module, weights | {"extra": torch.ones(1)}, where="x.pth")
    for key, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[key].float())


def test_a_module_on_the_meta_device_copies_nothing() -> None:
    weights = state()
    with torch.device("meta"):
        module = model()
    load_strict(module, weights, where="x.pth")
    assert module.get_parameter("0.weight").data_ptr() == weights["0.weight"].data_ptr()


def without(*keys: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state().items() if key not in keys}


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (without("1.bias"), r"1 of the 6 tensors of Sequential are missing \(1.bias\)"),
        ({}, r"6 of the 6 tensors of Sequential are missing \(0.weight, 0.bias, 1.weight, ...\)"),
        (state() | {"0.bias": torch.ones(4)}, r"\(0.bias is 4, not 3\)"),
        (state() | {"0.weight": torch.ones(2, 3)}, r"\(0.weight is 2x3, not 3x2\)"),
        (state() | {"0.bias": torch.ones(3).int()}, r"not fp32, fp16 or bf16 \(0.bias is int32\)"),
        (state() | {"0.bias": torch.ones(3).to(torch.float8_e4m3fn)}, "float8_e4m3fn"),
        (state() | {"0.bias": torch.tensor([0, 1, torch.inf])}, r"infinite values \(0.bias\)"),
        (
            state() | {"0.bias": torch.tensor([0, 1, -1e39], dtype=torch.float64)},
            "the tensor 0.bias has values up to 1e[+]39, which are infinite in float32",
        ),
    ],
)
def test_weights_that_do_not_fit(weights: dict[str, Tensor], sentence: str) -> None:
    module = model()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    with pytest.raises(DisaError, match=f"x.pth: .*{sentence}"):
        load_strict(module, weights, where="x.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_found(value: float, dtype: torch.dtype) -> None:
    good = {"a": torch.ones(3, dtype=dtype), "b": torch.zeros(0), "c": torch.tensor(3)}
    check_finite(good, "x.pth")
    bad = torch.ones(4, 5, dtype=dtype)
    bad[2, 3] = value
    with pytest.raises(DisaError, match=r"1 of 4 tensors have NaN or infinite values \(d\)"):
        check_finite(good | {"d": bad}, "x.pth")


def test_shape_of() -> None:
    assert shape_of(state(), "0.weight", 2, "x.pth") == (3, 2)
    with pytest.raises(DisaError, match=r"x.pth: the tensor 9.weight is missing"):
        shape_of(state(), "9.weight", 2, "x.pth")
    with pytest.raises(DisaError, match=r"0.bias has the shape 3 instead of 2 dimensions"):
        shape_of(state(), "0.bias", 2, "x.pth")


def test_count_blocks() -> None:
    weights = {f"blocks.{n}.w": torch.ones(1) for n in range(12)}
    assert count_blocks(weights, "blocks", "x.pth") == 12
    assert count_blocks(weights, "block", "x.pth") == 0
    del weights["blocks.7.w"]
    with pytest.raises(DisaError, match=r"blocks.7 is missing among its blocks"):
        count_blocks(weights, "blocks", "x.pth")
