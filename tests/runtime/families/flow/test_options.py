"""Guidance of the flow families."""

import pytest

from disa.runtime.families.flow.flowar import FlowAROptions
from disa.runtime.families.flow.options import FlowOptions


def test_guidance_grows_to_the_last_iteration() -> None:
    options = FlowOptions(guidance_scale=3)
    assert [options.guidance(iteration, 5) for iteration in range(5)] == [1, 1.5, 2, 2.5, 3]
    assert options.guidance(0, 1) == 1


@pytest.mark.parametrize(("scale", "guided"), [(0.5, False), (1, False), (1.01, True)])
def test_a_scale_of_1_or_less_is_no_guidance(scale: float, guided: bool) -> None:
    assert FlowOptions(guidance_scale=scale).guided is guided


def test_all_steps_are_guided_by_default() -> None:
    assert FlowAROptions().guidance_interval == 1
