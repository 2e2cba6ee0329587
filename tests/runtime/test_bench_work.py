from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from disa.engines.plan import Plan
from disa.exporter.checkpoint import open_checkpoint
from disa.exporter.head import HeadStep
from disa.exporter.mar import MAR, Backbone, build, configure
from disa.runtime.bench_work import (
    WIDTHS,
    backbone_flops,
    block_flops,
    count_work,
    graph_bytes,
    head_flops,
)
from disa.runtime.flow import FlowSettings
from disa.runtime.schedule import AnnealedSchedule
from disa.runtime.settings import Settings


@pytest.fixture(scope="module")
def model(pixel_checkpoint: Path) -> MAR:
    opened = open_checkpoint(pixel_checkpoint)
    config = configure(opened.state, None, opened.args)
    return build(opened.state, config, pixel_checkpoint)


@pytest.fixture(scope="module")
def sizes(pixel_plan: Path) -> dict[str, int]:
    with Plan.open(pixel_plan) as plan:
        return dict(plan.manifest.model)


def counted(run: Callable[[], Tensor]) -> int:
    """Operations of the matrix products that PyTorch really runs."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(("visible", "predicted"), [(0, 1), (3, 2), (9, 5)])
def test_the_backbone_does_what_is_written_down(
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
def test_the_head_does_what_is_written_down(
    model: MAR, sizes: dict[str, int], guidance: int
) -> None:
    step, rows = HeadStep(model.head), 3
    x = torch.zeros(rows, model.config.channels)
    y = torch.zeros(guidance, rows, step.width)
    assert counted(lambda: step.network(x, y)) == rows * head_flops(sizes, guidance)


def test_the_work_of_an_image(pixel_plan: Path, sizes: dict[str, int]) -> None:
    settings = Settings(iterations=3, schedule=AnnealedSchedule(4, 2), guidance_scale=2.0)
    with Plan.open(pixel_plan) as plan:
        one, two = (count_work(plan, settings, batch, "fp32") for batch in (1, 2))
        half = count_work(plan, settings, 1, "bf16")
        weights = {name: graph_bytes(plan, name) for name in ("backbone", "head")}
        assert count_work(plan, FlowSettings(), 1, "fp32") is None
    assert one is not None
    assert two is not None
    assert half is not None
    steps = sum(len(settings.table(index)) for index in range(3))
    assert len(one.calls["backbone"]) == 3
    assert len(one.calls["head"]) == steps
    assert two.flops == 2 * one.flops
    assert one.weight_bytes == 3 * weights["backbone"] + steps * weights["head"]
    assert two.weight_bytes == one.weight_bytes == 2 * half.weight_bytes
    assert WIDTHS["bf16"] * 2 == WIDTHS["fp32"]


def test_a_block_for_some_of_its_tokens() -> None:
    whole, part = block_flops(10, 10, 8, 4.0), block_flops(4, 10, 8, 4.0)
    assert whole == 2 * 8 * 8 * 10 * 12 + 4 * 10 * 10 * 8
    assert part == 2 * 8 * 8 * (4 * 10 + 10 * 2) + 4 * 4 * 10 * 8
