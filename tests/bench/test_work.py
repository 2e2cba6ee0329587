from collections.abc import Callable
from pathlib import Path

import pytest

from disa.bench.mar_work import graph_bytes, head_flops, modulation_weights
from disa.bench.work import WIDTHS, count_work
from disa.engines.plan.plan import Plan
from disa.runtime.families.flow.options import FlowOptions
from disa.runtime.families.masked.options import MaskedOptions


def test_the_work_of_an_image(pixel_plan: Path, sizes: dict[str, int]) -> None:
    options = MaskedOptions(num_iterations=3, steps="4:2", guidance_scale=2.0)
    with Plan.open(pixel_plan) as plan:
        one, two = (count_work(plan, options, batch, "fp32") for batch in (1, 2))
        half = count_work(plan, options, 1, "bf16")
        weights = {name: graph_bytes(plan, name) for name in ("backbone", "head")}
    assert one is not None
    assert two is not None
    assert half is not None
    steps = sum(len(options.table(index)) for index in range(3))
    assert len(one.calls["backbone"]) == 3
    assert len(one.calls["head"]) == steps + 3
    assert two.flops == 2 * one.flops
    # The weights of the modulations need to be read once an AR iteration.
    modulations = weights["head"] * 2 * modulation_weights(sizes) / head_flops(sizes, 1)
    every_step = weights["head"] - modulations
    expected = 3 * (weights["backbone"] + modulations) + steps * every_step
    assert one.weight_bytes == pytest.approx(expected)
    assert 0.3 * weights["head"] < modulations < 0.7 * weights["head"]
    assert two.weight_bytes == one.weight_bytes == pytest.approx(2 * half.weight_bytes)
    assert WIDTHS["bf16"] * 2 == WIDTHS["fp32"]


def test_a_family_without_a_formula(golden_plan: Callable[[str], Path]) -> None:
    with Plan.open(golden_plan("flowar_s")) as plan:
        assert count_work(plan, FlowOptions(), 1, "fp32") is None
