"""Families by name, and the defaults that an export writes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from disa.errors import DisaError, InvalidRequest
from disa.runtime.families.registry import checked_defaults, open_family
from disa.runtime.sampling.schedule import AnnealedSchedule, FittedSchedule, Strategy


def test_a_family_of_the_future() -> None:
    plan: Any = SimpleNamespace(path=Path("a.plan"), manifest=SimpleNamespace(family="next"))
    with pytest.raises(DisaError, match="family next, but this disa knows mar, flowar, xar, har"):
        open_family(plan, {})


def test_a_schedule_is_written_as_its_content() -> None:
    tokens = {"count": 64}
    found = checked_defaults("mar", tokens, {"cfg": 2.0}, {"schedule": FittedSchedule((9, 5))})
    assert (found["guidance_scale"], "num_iterations" in found) == (2.0, False)
    assert isinstance(found["schedule"], dict)
    listed = FittedSchedule((9, 5), (24, 40))
    assert checked_defaults("mar", tokens, {}, {"schedule": listed})["num_iterations"] == 2
    with pytest.raises(InvalidRequest, match="must list the steps of each AR iteration"):
        checked_defaults("mar", tokens, {}, {"schedule": AnnealedSchedule()})


def test_what_a_manifest_cannot_hold_is_not_written() -> None:
    """A manifest may not have null for a schedule, and NumPy's numbers are no JSON."""
    given: dict[str, Any] = {"schedule": None, "tolerance": None, "steps": 9}
    given |= {"guidance_scale": np.float32(2.5), "num_iterations": np.int64(4)}
    given |= {"temperature": 1, "strategy": Strategy.COSINE}
    found = checked_defaults("mar", {"count": 64}, {"temperature": 0.5}, given)
    assert json.loads(json.dumps(found)) == {
        "steps": "9",
        "strategy": "cosine",
        "guidance_scale": 2.5,
        "num_iterations": 4,
        "temperature": 1.0,
    }
