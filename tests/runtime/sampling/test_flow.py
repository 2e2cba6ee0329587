import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

from disa.errors import DisaError
from disa.runtime.families.flow.flowar import FlowAROptions
from disa.runtime.families.flow.options import FlowOptions
from disa.runtime.sampling.flow import euler_maruyama_table, euler_table, linspace

from ...conftest import references


def recorded(model: str) -> list[tuple[dict, dict]]:
    """(options, AR iteration) of every recorded run of a model."""
    found = []
    for path in references(model):
        meta = json.loads(str(np.load(path)["meta"]))
        found += [(meta, step) for step in meta["steps"]]
    return found


@pytest.mark.parametrize("model", ["flowar_s", "flowar_l", "xar"])
def test_times_counts_and_guidance_are_the_recorded_ones(model: str) -> None:
    make = euler_maruyama_table if model == "xar" else euler_table
    for meta, step in recorded(model):
        count = 4 if model == "xar" else 5
        index = step.get("cluster", int(np.log2(step.get("scale", 1))))
        options = FlowOptions(steps=f"{meta['upper']}:{meta['lower']}", guidance_scale=meta["cfg"])
        nominal = options.step_schedule.steps(index, count)
        table = make(nominal)
        assert nominal == step["nominal_steps"]
        assert len(table) == step.get("head_calls", step.get("calls"))
        assert np.array_equal(table.times.astype(np.float32), np.float32(step["timesteps"]))
        assert options.guidance(index, count) == pytest.approx(step["cfg"], rel=1e-15)


@pytest.mark.parametrize(("start", "stop"), [(1, 0.3), (0.25, 0), (1, 0.04), (1, 0)])
def test_linspace_is_that_of_pytorch_to_the_last_bit(start: float, stop: float) -> None:
    for count in range(101):
        expected = torch.linspace(start, stop, count, dtype=torch.float64).numpy()
        assert np.array_equal(linspace(start, stop, count), expected)


def test_whole_timesteps_are_cut_off_in_single_precision() -> None:
    for make in (euler_table, euler_maruyama_table):
        for steps in range(2, 101):
            table = make(steps)
            times = torch.from_numpy(table.times).float()
            assert np.array_equal(table.timesteps, (times * 1000).long().numpy())
            assert table.timesteps.dtype == np.float32
    assert euler_table(50).timesteps[:4].tolist() == [1000, 980, 960, 940]
    # In double precision 0.76 * 1000 falls short of 760.
    assert euler_maruyama_table(5).timesteps.tolist() == [1000, 760, 520, 280, 40]
    assert int(float(np.float32(0.76)) * 1000) == 759


def test_euler_grids() -> None:
    assert len(euler_table(25)) == 24
    assert len(euler_table(2)) == len(euler_table(3)) == 2
    assert euler_table(4).times.tolist() == [1, 0.3, 0.25, 0.125]
    for steps in (2, 17, 24, 50):
        assert euler_table(steps).coefficients[:, 1].sum() == pytest.approx(-1, abs=1e-6)
        assert (euler_table(steps).coefficients[:, 0] == 1).all()


@pytest.mark.parametrize("steps", [2, 5, 50])
def test_euler_maruyama_is_the_reverse_process(steps: int) -> None:
    """The linear coefficients against drift and score written out."""
    table = euler_maruyama_table(steps)
    rng = np.random.default_rng(0)
    following = np.append(table.times[1:], 0.0)
    for t, after, row in zip(table.times, following, table.coefficients, strict=True):
        x, v, noise = rng.standard_normal((3, 8))
        score = (-(1 - t) * v - x) / (t**2 + (1 - t) * t)
        drift = v - 0.5 * (2 * t) * score
        expected = x + drift * (after - t)
        if after:
            expected += np.sqrt(2 * t) * noise * np.sqrt(abs(after - t))
        ours = row.astype(np.float64) @ np.stack([x, v, noise])
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    assert table.coefficients[-1, 2] == 0


@pytest.mark.parametrize("steps", [0, 1, 1001])
@pytest.mark.parametrize("make", [euler_table, euler_maruyama_table])
def test_too_few_or_too_many_steps(make: Callable[[int], object], steps: int) -> None:
    with pytest.raises(DisaError, match="2 to 1000"):
        make(steps)


def test_guidance_grows_from_none() -> None:
    options = FlowOptions(guidance_scale=4)
    assert [options.guidance(index, 4) for index in range(4)] == [1, 2, 3, 4]
    assert options.guidance(0, 1) == 1


@pytest.mark.parametrize(
    "options", [{"guidance_scale": 0}, {"guidance_interval": 1.5}, {"guidance_interval": -1}]
)
def test_unusable_options(options: dict[str, float]) -> None:
    with pytest.raises(DisaError, match="guidance"):
        FlowAROptions(**options)
