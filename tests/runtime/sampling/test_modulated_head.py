"""The head's two ways: each step computes its modulations, or many steps at once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from disa.engines.open import open_session
from disa.engines.plan.plan import Plan
from disa.engines.plan.traits import HOST_ONLY
from disa.engines.session import Session
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.head import FEW_ROWS, ROWS_AT_ONCE, Head
from disa.runtime.sessions import Sessions
from disa.runtime.stats import Stats


@pytest.fixture(scope="module")
def plan(golden_plan: Callable[..., Path]) -> Iterator[Plan]:
    with Plan.open(golden_plan("mar")) as opened:
        yield opened


def opened(plan: Plan, engine: str = "cpu") -> Sessions:
    return Sessions(plan, lambda name: open_session(plan, name, engine, precision="fp32"))


def without_halves(plan: Plan, engine: str = "cpu") -> dict[str, Session]:
    """The sessions of a plan as it was before there were such graphs."""
    return {
        name: open_session(plan, name, engine, precision="fp32")
        for name, graph in plan.manifest.graphs.items()
        if graph.traits.role not in HOST_ONLY
    }


def tokens(pipe: Pipeline, **options: object) -> np.ndarray:
    chosen = pipe.options(steps="9:4", num_iterations=6, **options)
    outputs = pipe.generate(pipe.requests([0, 1], chosen, 5, range(2)), Stats())
    return np.stack([output.latents for output in outputs])


@pytest.mark.parametrize("rows", [1, 2, 10, FEW_ROWS])
@pytest.mark.parametrize("steps", [2, 3, 26, 100, 1000])
def test_parts_are_all_steps_and_of_bounded_size(plan: Plan, rows: int, steps: int) -> None:
    parts = Head(opened(plan).__getitem__, True).parts(rows, steps)
    assert parts is not None
    assert [step for part in parts for step in range(steps)[part]] == list(range(steps))
    assert all(0 < (part.stop - part.start) * rows <= ROWS_AT_ONCE for part in parts)


@pytest.mark.parametrize(("rows", "steps"), [(FEW_ROWS + 1, 50), (2, 1)])
def test_many_rows_and_single_steps_go_the_plain_way(plan: Plan, rows: int, steps: int) -> None:
    assert Head(opened(plan).__getitem__, True).parts(rows, steps) is None


def test_a_plan_without_these_graphs_goes_the_plain_way(plan: Plan) -> None:
    assert Head(without_halves(plan).__getitem__).parts(2, 50) is None


def test_arrays_on_a_device_go_the_plain_way(plan: Plan) -> None:
    timestep = opened(plan)["timestep"]
    timestep.empty = lambda shape, dtype: object()  # type: ignore[method-assign]
    assert Head(lambda name: timestep, True).parts(2, 50) is None


def test_the_head_of_a_device_is_loaded_at_once(plan: Plan) -> None:
    """Its description says whether its steps are CUDA graphs."""
    sessions = opened(plan)
    Head(sessions.__getitem__, True)
    assert not dict.__contains__(sessions, "head")
    sessions["timestep"].empty = lambda shape, dtype: object()  # type: ignore[method-assign]
    Head(sessions.__getitem__, True)
    assert dict.__contains__(sessions, "head")


@pytest.mark.parametrize("engine", ["cpu", "openvino"])
@pytest.mark.parametrize("options", [{}, {"tolerance": 0.5}, {"guidance_scale": 1.0}])
def test_both_ways_give_the_same_tokens(
    plan: Plan, engine: str, options: dict[str, object]
) -> None:
    sessions = opened(plan, engine)
    assert not dict.__contains__(sessions, "head")
    quick = tokens(Pipeline(plan, sessions), **options)
    assert dict.__contains__(sessions, "modulated_head")
    plain = tokens(Pipeline(plan, without_halves(plan, engine)), **options)
    np.testing.assert_allclose(quick, plain, rtol=0, atol=1e-5 * np.abs(plain).max())


def test_weights_lie_in_the_plan_once(plan: Plan) -> None:
    graphs = plan.manifest.graphs
    for name in ("modulation", "modulated_head"):
        own = set(graphs[name].data) - set(graphs["head"].data)
        assert sum(plan.manifest.members[member].size for member in own) < 4096
