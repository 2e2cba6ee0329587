from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from disa.calibration.quantization.recorded_calls import (
    CountingSession,
    Differences,
    FollowingSession,
    RecordedCall,
    RecordedLoop,
    RecordingSession,
    spread,
)
from disa.engines.session import TensorSpec, iterate_by_run

SHAPE = (2, 3)


class Adding:
    """next_x = x + noise + offset."""

    description = "adding"
    inputs = (TensorSpec("x", "float32", SHAPE), TensorSpec("noise", "float32", SHAPE))
    outputs = (TensorSpec("next_x", "float32", SHAPE),)

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = np.float32(offset)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"next_x": inputs["x"] + inputs["noise"] + self.offset}

    def iterate(self, *arguments: Any) -> dict[str, Any]:
        return iterate_by_run(self, *arguments)

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        return np.empty(shape, dtype)


def loop_inputs(seed: int, steps: int = 4) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((steps, *SHAPE)).astype(np.float32)
    return {"next_x": "x"}, {}, {"noise": noise}, {"x": np.ones(SHAPE, np.float32)}


def draw(session: Any) -> list[Any]:
    return [session.iterate(*loop_inputs(seed))["next_x"] for seed in range(5)]


def test_spread() -> None:
    assert spread([0.0, 0.5, 1.0], 9) == [0, 4, 8]
    assert spread([0.0, 0.5, 1.0], 1) == [0, 0, 0]


def test_loops_and_their_results_are_kept() -> None:
    keeper = RecordingSession(Adding(), calls=0, loops=5)
    drawn = draw(keeper)
    np.testing.assert_array_equal(keeper.results, drawn)
    assert len(keeper.states) == 3
    assert [state.error(Adding()) for state in keeper.states] == [0.0, 0.0, 0.0]
    kept = keeper.states[1]
    assert isinstance(kept, RecordedLoop)
    np.testing.assert_array_equal(kept.results["next_x"], drawn[2])
    # Every step of four is off by a half, so the result is off by two in every entry.
    wanted = 2 * np.sqrt(6) / np.linalg.norm(drawn[2] - drawn[2].mean())
    assert kept.error(Adding(0.5)) == pytest.approx(wanted, rel=1e-5)


def test_calls_are_kept_as_they_were() -> None:
    keeper = RecordingSession(Adding(), calls=1, loops=0)
    x = np.ones(SHAPE, np.float32)
    keeper.run({"x": x, "noise": 2 * x})
    x[:] = 7
    (call,) = keeper.states
    assert isinstance(call, RecordedCall)
    assert call.inputs["x"].max() == 1
    assert call.error(Adding()) == 0
    assert call.error(Adding(0.3)) == pytest.approx(0.1)
    assert call.error(Adding(float("nan"))) == float("inf")


def test_loops_without_steps_are_not_kept() -> None:
    keeper = RecordingSession(Adding(), calls=0, loops=1)
    keeper.iterate(*loop_inputs(0, steps=0))
    assert not keeper.states
    assert len(keeper.results) == 1


def test_a_follower_is_put_right_after_every_loop() -> None:
    keeper = RecordingSession(Adding(), calls=0, loops=5)
    wanted = draw(keeper)
    differences = Differences()
    follower = FollowingSession(Adding(0.5), keeper.results, differences)
    np.testing.assert_array_equal(draw(follower), wanted)
    assert differences.distance == pytest.approx(2.0 / np.std(wanted), rel=1e-5)
    assert differences.spread == pytest.approx(0, abs=1e-6)


def in_parts(session: Any, seed: int, parts: Sequence[slice]) -> Any:
    """Run a loop in several parts, each of which continues the one before."""
    carry, constants, per_step, state = loop_inputs(seed)
    x = state["x"]
    for part in parts:
        given = {name: values[part] for name, values in per_step.items()}
        x = session.iterate(carry, constants, given, {"x": x})["next_x"]
    return x


def test_all_parts_of_a_loop_are_kept_except_those_without_steps() -> None:
    # FlowAR guides from a time on: the part before, or the part after, may have no steps.
    counter, keeper = CountingSession(Adding()), RecordingSession(Adding(), calls=0, loops=5)
    for session in (counter, keeper):
        for seed in range(5):
            in_parts(session, seed, [slice(0, 0), slice(0, 1), slice(1, 4)])
    assert counter.loops == 5
    kept = [len(state.per_step["noise"]) for state in keeper.states]  # type: ignore[attr-defined]
    assert kept == [1, 3] * 3


@pytest.mark.parametrize("cuts", [(0, 0, 4), (0, 4, 4), (0, 2, 4), (0, 1, 2, 4)])
def test_the_parts_of_a_loop_are_compared_as_one(cuts: Sequence[int]) -> None:
    parts = [slice(*pair) for pair in pairwise(cuts)]
    keeper = RecordingSession(Adding(), calls=0, loops=5)
    wanted = [in_parts(keeper, seed, parts) for seed in range(5)]
    differences = Differences()
    follower = FollowingSession(Adding(0.5), keeper.results, differences)
    found = [in_parts(follower, seed, parts) for seed in range(5)]
    np.testing.assert_array_equal(found, wanted)
    assert len(differences.own) == 5
    # All four steps are off by a half, however they are divided.
    assert differences.distance == pytest.approx(2.0 / np.std(wanted), rel=1e-5)


def test_distance_and_spread() -> None:
    right = np.random.default_rng(0).standard_normal((400, 16))
    wider, noisy, broken = Differences(), Differences(), Differences()
    wider.add(1.1 * right + 3, right)
    assert wider.spread == pytest.approx(0.1)
    assert wider.distance == pytest.approx(3, rel=0.01)
    noisy.add(right + 0.05 * np.random.default_rng(1).standard_normal(right.shape), right)
    assert noisy.distance == pytest.approx(0.05, rel=0.05)
    assert abs(noisy.spread) < 0.005
    broken.add(right * np.nan, right)
    assert (broken.distance, broken.spread) == (float("inf"), float("inf"))
