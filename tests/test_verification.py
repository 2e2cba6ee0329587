from collections.abc import Callable
from pathlib import Path

import pytest

import disa
from disa.errors import DamagedFile, InvalidRequest

from .conftest import GOLDEN

PATH = GOLDEN / "mar_patch2" / "linear_cfg.npz"


def test_a_recorded_run_from_python(golden_plan: Callable[..., Path]) -> None:
    found = disa.verify(golden_plan("mar_patch2"), references=[PATH])
    assert found.passed
    assert found.checkpoint is None
    assert found.recorded is not None
    assert found.recorded.worst < 3e-5
    assert list(found.recorded.differences) == [PATH]
    assert found.recorded.differences[PATH][-1].what == "latents"
    assert found.to_json()["worst"] == found.recorded.worst


def test_what_is_beyond_the_tolerance_is_told_and_not_raised(
    golden_plan: Callable[..., Path],
) -> None:
    found = disa.verify(golden_plan("mar_patch2"), references=[str(PATH)], tolerance=1e-12)
    assert not found.passed
    assert not found.to_json()["passed"]


def test_both_at_once(golden_plan: Callable[..., Path]) -> None:
    checkpoint = GOLDEN / "mar_patch2" / "checkpoint.pth"
    found = disa.verify(golden_plan("mar_patch2"), references=[PATH], against=checkpoint)
    assert found.passed
    assert found.to_json().keys() == {"recorded", "checkpoint"}


def test_requests_that_cannot_be(golden_plan: Callable[..., Path], tmp_path: Path) -> None:
    plan = golden_plan("mar_patch2")
    with pytest.raises(InvalidRequest, match="nothing to compare with"):
        disa.verify(plan)
    for tolerance in (-1, float("nan"), float("inf")):
        with pytest.raises(InvalidRequest, match="tolerance must be a number of at least 0"):
            disa.verify(plan, references=[PATH], tolerance=tolerance)
    with pytest.raises(DamagedFile, match="there is no such file"):
        disa.verify(plan, references=[tmp_path / "none.npz"])
