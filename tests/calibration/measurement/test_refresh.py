from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.calibration.measurement.refresh import _Repetition, measure_refresh
from disa.errors import DisaError
from disa.runtime.pipeline import Pipeline
from disa.runtime.stats import Stats


@pytest.fixture(scope="module")
def pipe(cached_backbone_pixels: Path) -> Pipeline:
    return Pipeline.from_plan(cached_backbone_pixels, "cpu")


OPTIONS: dict[str, Any] = {"steps": "4:4", "num_iterations": 5, "guidance_scale": 2.0}


def test_a_full_pass_leads_nowhere(pipe: Pipeline) -> None:
    """In the same state and with the same noise it gives the tokens of the exact loop."""
    options = pipe.options(**OPTIONS)
    again = _Repetition(pipe.family, pipe.requests([0, 1, 2], options, 0, range(3)), 7)
    for place in (0, 2):
        expected: list[Any] = []
        start, stop = int(again.known[place]), int(again.ends[place])
        again.family.look_ahead(
            again.samples,
            start,
            range(start, stop),
            Stats(),
            lambda seen, place=place, into=expected: again._sample(place, into, seen),
        )
        samples, seconds = again._from(place)[0]
        assert seconds > 0
        for found, wanted in zip(samples, expected[0], strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_what_is_measured(pipe: Pipeline) -> None:
    options, tokens = pipe.options(**OPTIONS), [1, 2, 2, 3, 8]
    done: list[int] = []
    found = measure_refresh(pipe, options, [0, 1, 2, 0, 1], tokens, 3, 0, done.append)
    assert done == [3, 2]
    assert found.tokens.tolist() == tokens
    assert (found.places[0], found.places[-1]) == (0, 4)
    assert found.error.shape == (len(found.places), 5)
    for row, place in enumerate(found.places):
        assert not found.error[row, : place + 1].any()
    assert found.error[0, 1:].max() > 0
    assert min(found.full.min(), found.reuse.min()) > 0
    again = measure_refresh(pipe, options, [0, 1, 2, 0, 1], tokens, 3, 0)
    np.testing.assert_array_equal(again.error, found.error)


def test_a_plan_that_forgets(pixel_pipeline: Pipeline) -> None:
    with pytest.raises(DisaError, match=r"no cached backbone.*--cached-backbone"):
        measure_refresh(pixel_pipeline, pixel_pipeline.options(), [0, 1], [16], 2, 0)
