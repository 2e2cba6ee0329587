from typing import Any

import numpy as np
import pytest

from disa.calibration.measurement import observe
from disa.calibration.measurement.observe import (
    PAIRS,
    Candidates,
    Observer,
    by_image,
    energy_distance,
)
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.schedule import AnnealedSchedule
from disa.runtime.stats import Stats


def samples(rng: np.random.Generator, count: int, shift: float = 0.0) -> list[np.ndarray]:
    return [(rng.standard_normal((4000, 6)) + shift).astype(np.float32) for _ in range(count)]


def test_energy_distance_is_zero_for_the_same_distribution_alone() -> None:
    rng = np.random.default_rng(0)
    same = energy_distance(samples(rng, 3), samples(rng, 3))
    assert same.shape == (4000,)
    assert abs(same.mean()) < 4 * same.std() / np.sqrt(len(same))
    shifted = energy_distance(samples(rng, 2, 0.5), samples(rng, 2))
    assert shifted.mean() > 0.1
    narrow = [sample * np.float32(0.5) for sample in samples(rng, 2)]
    assert energy_distance(narrow, samples(rng, 2)).mean() > 0.1


def test_energy_distance_of_known_points() -> None:
    first = [np.full((1, 4), value, np.float32) for value in (0.0, 0.0)]
    second = [np.full((1, 4), value, np.float32) for value in (1.0, 3.0)]
    # 2 * mean(1, 3) - 0 - 2
    np.testing.assert_allclose(energy_distance(first, second), [2.0])


def test_samples_that_depend_on_each_other_are_compared_without_bias() -> None:
    rng = np.random.default_rng(0)
    first = samples(rng, 2)
    again = samples(rng, 2)
    near = [sample + np.float32(0.1) for sample in first]
    coupled, apart = (
        energy_distance(other, first)
        for other in (near, [sample + np.float32(0.1) for sample in again])
    )
    assert coupled.mean() == pytest.approx(apart.mean(), abs=4 * apart.std() / np.sqrt(4000))
    # The same precision takes hundreds of times as many independent samples.
    assert coupled.std() < 0.05 * apart.std()
    assert coupled.mean() > 20 * coupled.std() / np.sqrt(4000)


def test_rows_are_token_major() -> None:
    np.testing.assert_allclose(by_image(np.arange(6.0), 3), [1.5, 2.5, 3.5])


def test_no_noise_is_used_twice(pixel_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by two AR iterations nor by two batches, whose errors would depend on each other."""
    drawn: list[np.ndarray] = []
    coupled_noise = observe.coupled_noise

    def watched(noise: np.ndarray, *arguments: Any) -> np.ndarray:
        coupled = coupled_noise(noise, *arguments)
        # No step of 50 is in the interval of the first of 20: its noise is drawn.
        drawn.extend((noise[0], coupled[1]))
        return coupled

    monkeypatch.setattr(observe, "coupled_noise", watched)
    options = pixel_pipeline.options(num_iterations=2, steps="50:50")
    candidates = Candidates((20,), AnnealedSchedule(50, 5), 2)
    for start in range(3):
        stats = Stats()
        requests = pixel_pipeline.requests([1], options, 0, [start])
        watch = Observer(candidates, 1 + start, stats)
        pixel_pipeline.generate(requests, stats, watch=watch)
    assert len(drawn) == 3 * 2 * PAIRS * 2
    assert len({noise.ravel()[0] for noise in drawn}) == len(drawn)
