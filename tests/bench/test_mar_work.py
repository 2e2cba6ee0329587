from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from disa.bench.mar_work import (
    backbone_flops,
    block_flops,
    head_flops,
)
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.families.mar import MAR, Backbone, build, configure
from disa.exporter.layers.diffusion_head import StepNetwork


@pytest.fixture(scope="module")
def model(pixel_checkpoint: Path) -> MAR:
    opened = open_checkpoint(pixel_checkpoint)
    config = configure(opened.state, None, opened.args)
    return build(opened.state, config, pixel_checkpoint)


def counted(run: Callable[[], Tensor]) -> int:
    """Operations of the matmuls that PyTorch really runs."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("visible", "predicted"), [(0, 1), (3, 2), (9, 5)])
def test_the_backbone_does_the_counted_work(
    model: MAR, sizes: dict[str, int], visible: int, predicted: int
) -> None:
    positions = torch.arange(model.config.tokens)[:, None]
    inputs = (
        torch.zeros(visible, 1, model.config.channels),
        positions,
        positions[visible : visible + predicted],
        torch.zeros(1, 1, dtype=torch.int64),
    )
    done = counted(lambda: Backbone(model)(*inputs))
    assert done == backbone_flops(sizes, model.config.tokens, visible, predicted)


@pytest.mark.parametrize("guidance", [1, 2])
def test_the_head_does_the_counted_work(model: MAR, sizes: dict[str, int], guidance: int) -> None:
    step, rows = StepNetwork(model.head), 3
    x = torch.zeros(rows, model.config.channels)
    y = torch.zeros(guidance, rows, step.width)
    assert counted(lambda: step.network(x, y)) == rows * head_flops(sizes, guidance)


def test_a_block_for_some_of_its_tokens() -> None:
    whole, part = block_flops(10, 10, 8, 4.0), block_flops(4, 10, 8, 4.0)
    assert whole == 2 * 8 * 8 * 10 * 12 + 4 * 10 * 10 * 8
    assert part == 2 * 8 * 8 * (4 * 10 + 10 * 2) + 4 * 4 * 10 * 8
