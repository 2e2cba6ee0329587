from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from disa.calibration.measurement.dependence import Dependence, measure_dependence, places_of
from disa.errors import DisaError
from disa.runtime.families.masked.family import MaskedFamily
from disa.runtime.generation import generate
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.head import Iteration
from disa.runtime.stats import Stats


@pytest.mark.parametrize("tokens", [1, 2, 9, 16, 256, 4096])
def test_places_reach_from_nothing_to_all_but_one(tokens: int) -> None:
    places = places_of(tokens)
    assert (places[0], places[-1]) == (0, tokens - 1)
    assert (np.diff(places) > 0).all()


def test_between_the_places_errors_grow_from_the_diagonal() -> None:
    places = np.array([0, 4, 16])
    error = np.array([[0, 1.0, 3.0], [0, 0, 1.5], [0, 0, 0]])
    every = Dependence(places, error, error).every
    assert every.shape == (17, 17)
    np.testing.assert_allclose(every[np.ix_(places, places)], error)
    assert not np.tril(every).any()
    assert (np.diff(every[0]) > 0).all()
    # Half way in the root of the number: 1 is between 0 and 4.
    assert every[0, 1] == pytest.approx(0.5)
    assert every[1, 4] == pytest.approx(0.5)
    assert every[1, 1] == 0


def test_one_token_depends_on_nothing() -> None:
    only = Dependence(np.array([0]), np.zeros((1, 1)), np.zeros((1, 1)))
    np.testing.assert_array_equal(only.every, np.zeros((1, 1)))


def test_looking_ahead_is_predicting_at_once(pixel_pipeline: Pipeline) -> None:
    """The condition is that of an iteration that predicts the tokens between as well."""
    family = pixel_pipeline.family
    assert isinstance(family, MaskedFamily)
    options = pixel_pipeline.options(steps="3:3", num_iterations=2, guidance_scale=2.0)
    requests = pixel_pipeline.requests([0, 1, 2], options, 0, range(3))
    samples = family.start(requests, Stats())
    known, count = samples[0].counts
    seen: list[Iteration] = []
    generate(family, samples, Stats(), watch=seen.append)
    before = np.array(samples[0].cohort.arrays["tokens"])
    found: list[np.ndarray] = []

    def watch(iteration: Iteration) -> None:
        found.append(np.array(iteration.condition))
        assert iteration.guidance_scale == seen[1].guidance_scale
        np.testing.assert_array_equal(iteration.predicted, seen[1].predicted[2:])

    family.look_ahead(samples, known, range(known + 2, known + count), Stats(), watch)
    expected = np.asarray(seen[1].condition)[:, 2 * 3 :]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(before, samples[0].cohort.arrays["tokens"])
    assert all(sample.done and sample.known == known + count for sample in samples)


def test_what_is_measured(pixel_pipeline: Pipeline) -> None:
    options = pixel_pipeline.options(num_iterations=4, guidance_scale=2.0)
    done: list[int] = []
    found = measure_dependence(pixel_pipeline, options, [0, 1, 2, 0, 1], 3, 5, done.append)
    assert done == [3, 2]
    assert found.error.shape == (len(found.places),) * 2
    assert not np.tril(found.error).any()
    for column in range(len(found.places)):
        assert (np.diff(found.error[: column + 1, column]) <= 0).all()
    assert found.error[0, -1] > 0
    again = measure_dependence(pixel_pipeline, options, [0, 1, 2, 0, 1], 3, 5)
    np.testing.assert_array_equal(again.error, found.error)


@pytest.mark.parametrize("name", ["flowar_s", "xar"])
def test_families_whose_iterations_are_fixed(golden_plan: Callable[..., Path], name: str) -> None:
    pipe = Pipeline.from_plan(golden_plan(name), "cpu")
    with pytest.raises(DisaError, match=r"AR iterations of a .* model are fixed"):
        measure_dependence(pipe, pipe.options(), [0, 1], 2, 0)
