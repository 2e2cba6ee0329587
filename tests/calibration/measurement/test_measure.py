import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.calibration.measurement.measure import LEAST_IMAGES, TOLERANCES, measure
from disa.engines.session import Session
from disa.errors import DisaError
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.schedule import AnnealedSchedule

QUICK: dict[str, Any] = {
    "many": 8,
    "precision": 0.0,
    "batch_size": 3,
    "base": AnnealedSchedule(4, 4),
    "carry": np.ones(1),
}


class Broken:
    """A session whose head gives a value that is not a number."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def iterate(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        outputs = {
            name: np.array(x) for name, x in self._session.iterate(*arguments, **named).items()
        }
        outputs["next_x"][0, 0] = np.nan
        return outputs


def test_every_iteration_is_measured(pixel_pipeline: Pipeline) -> None:
    options = pixel_pipeline.options(num_iterations=3)
    seen: list[int] = []
    measured = measure(pixel_pipeline, options, [1, 2, 3, 4, 5], **QUICK, advance=seen.append)
    assert measured.images == 5
    assert seen == [3, 2]
    for name in ("predictability", "variance", "curvature"):
        signal = getattr(measured.signals, name)
        assert signal.mean.shape == signal.half_width.shape == (3,)
        assert (signal.mean > 0).all()
        assert np.isfinite(signal.half_width).all()
    tradeoff = measured.tradeoff
    assert tradeoff.tokens.sum() == pixel_pipeline.plan.manifest.tokens["count"]
    assert tradeoff.counts.tolist() == [2, 3, 4]
    assert (np.diff(tradeoff.error, axis=1) <= 0).all()
    np.testing.assert_array_equal(tradeoff.calls[:, 0], 2 * tradeoff.tokens)


def test_the_seed_decides(pixel_pipeline: Pipeline) -> None:
    options = pixel_pipeline.options(num_iterations=2)
    first, second, other = (
        measure(pixel_pipeline, options, [1, 2], **QUICK, seed=seed).signals.variance.mean
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-6


def test_it_stops_when_the_intervals_are_tight(pixel_pipeline: Pipeline) -> None:
    options = pixel_pipeline.options(num_iterations=2)
    measured = measure(pixel_pipeline, options, [0] * 30, **{**QUICK, "precision": 100.0})
    assert measured.images == math.ceil(LEAST_IMAGES / QUICK["batch_size"]) * QUICK["batch_size"]


def test_too_little_to_measure(pixel_pipeline: Pipeline) -> None:
    options = pixel_pipeline.options(num_iterations=2)
    with pytest.raises(DisaError, match="--num"):
        measure(pixel_pipeline, options, [1], **QUICK)
    with pytest.raises(DisaError, match="too few"):
        measure(pixel_pipeline, options, [1, 2], **{**QUICK, "many": 5})


def test_adaptive_steps_are_measured(pixel_pipeline: Pipeline) -> None:
    options = pixel_pipeline.options(num_iterations=2, strategy="adaptive")
    base = AnnealedSchedule(7, 7)
    measured = measure(pixel_pipeline, options, [1, 2, 3], **{**QUICK, "base": base})
    assert [point.tolerance for point in measured.adaptive] == list(TOLERANCES)
    calls = [point.calls for point in measured.adaptive]
    assert calls == sorted(calls, reverse=True)
    taken = len(options.table_of(7)) * pixel_pipeline.plan.manifest.tokens["count"]
    assert 0 < calls[-1] <= calls[0] <= taken
    options = pixel_pipeline.options(num_iterations=2, sampler="dpm-solver")
    assert measure(pixel_pipeline, options, [1, 2], **{**QUICK, "base": base}).adaptive == ()


def test_what_is_not_finite_is_refused(pixel_pipeline: Pipeline) -> None:
    sessions = {**pixel_pipeline.sessions, "head": Broken(pixel_pipeline.sessions["head"])}
    pipe = Pipeline(pixel_pipeline.plan, sessions)
    with pytest.raises(DisaError, match="tokens of AR iteration 1 were not finite"):
        measure(pipe, pipe.options(num_iterations=2), [1, 2], **QUICK)


@pytest.mark.parametrize("name", ["flowar_s", "xar"])
def test_flow_families(golden_plan: Callable[..., Path], name: str) -> None:
    pipe = Pipeline.from_plan(golden_plan(name), "cpu")
    base = AnnealedSchedule(6, 6)
    measured = measure(pipe, pipe.options(), [1, 2], **{**QUICK, "base": base})
    assert all(np.isfinite(point.error) for point in measured.adaptive)
    assert len(measured.adaptive) == len(TOLERANCES)
    iterations = pipe.family.iterations(pipe.options())
    for signal in vars(measured.signals).values():
        assert signal.mean.shape == (iterations,)
        assert (signal.mean > 0).all()
    assert np.isfinite(measured.tradeoff.error).all()
