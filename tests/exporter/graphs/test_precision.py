import pytest
import torch
from torch import nn

from disa.errors import DisaError
from disa.exporter.graphs.precision import Precision, set_precision


def model(value: float) -> nn.Sequential:
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    with torch.no_grad():
        module[0].weight[1, 1] = value
    return module


@pytest.mark.parametrize(("value", "precision"), [(-7e4, Precision.FP16), (3.4e38, Precision.BF16)])
def test_weights_that_would_become_infinite_are_named(value: float, precision: Precision) -> None:
    with pytest.raises(DisaError, match=rf"^the weight 0\.weight has .* infinite in {precision}"):
        set_precision(model(value), precision)


@pytest.mark.parametrize("precision", list(Precision))
def test_the_largest_weights_are_converted(precision: Precision) -> None:
    module = set_precision(model(65504.0), precision)
    assert module[0].weight.dtype == precision.dtype
    assert module[0].weight.isfinite().all()
    assert module[1].weight.dtype == torch.float32
