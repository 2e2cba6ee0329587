"""Arguments of a calibration that would be measured wrongly are refused before it is measured."""

from typing import Any

import pytest

from disa.calibration.calibrate import calibrate
from disa.calibration.measurement import measure
from disa.errors import DisaError
from disa.runtime.pipeline import Pipeline


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "generate", None)
    monkeypatch.setattr(measure, "measure", None)


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ([-1, 0], "class -1 does not exist"),  # the graph would take it for no class
        ([0, 10], "class 10 does not exist"),
        ([0.5, 1], "whole number or a name, not 0.5"),
        (["lamp", "top"], "no class .lamp."),
        ([0], "two or more"),
        (3, "two or more"),
        ([], "nothing to generate"),
    ],
)
def test_conditions(conditions: Any, words: str, pixel_pipeline: Pipeline) -> None:
    with pytest.raises(DisaError, match=words):
        calibrate(pixel_pipeline, conditions)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": float("nan")}, "target must be a number above 0, not nan"),
        ({"target": -1.0}, "target must be a number above 0"),
        ({"precision": float("nan")}, "precision must be a number of at least 0"),
        ({"reference_steps": 5}, "reference steps must be a whole number from 6 to 1000"),
        ({"reference_steps": 50.0}, "reference steps must be a whole number"),
        ({"batch_size": 1}, "batch size must be a whole number at least 2"),
        ({"batch_size": 0}, "batch size"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"tolerance": 0.5}, "without tolerance, which would have no effect"),
        ({"schedule": "steps.json"}, "without schedule"),
    ],
)
def test_options(options: dict[str, Any], words: str, pixel_pipeline: Pipeline) -> None:
    with pytest.raises(DisaError, match=words):
        calibrate(pixel_pipeline, [0, 1], **options)
