"""Families by name, and the defaults that an export writes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from disa.errors import DisaError, InvalidRequest
from disa.runtime.families.registry import checked_defaults, open_family
from disa.runtime.sampling.schedule import AnnealedSchedule, FittedSchedule


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
    assert checked_defaults("mar", tokens, {}, {"schedule": None})["schedule"] is None
