from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_plan import CALIBRATION, TINY, write_plan
from disa.engines.plan.plan import Plan
from disa.runtime.pipeline import Pipeline

from .test_official_sizes import TINY as TINY_XAR


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_plan_of_any_precision_samples(tmp_path: Path, precision: str) -> None:
    path = write_plan(TINY, precision, tmp_path / "tiny.plan")

    with Plan.open(path) as plan:
        assert plan.manifest.precision == precision
        quantized = precision == "int8"
        assert (plan.manifest.defaults["steps"] == CALIBRATION["steps"]) == quantized
    latents = Pipeline.from_plan(path)(1).latents
    assert np.isfinite(latents).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.plan"]


def test_other_families_are_exported_too(tmp_path: Path) -> None:
    path = write_plan(TINY_XAR, "int8", tmp_path / "xar.plan")
    with Plan.open(path) as plan:
        assert (plan.manifest.family, plan.manifest.precision) == ("xar", "int8")
        assert "num_iterations" not in plan.manifest.defaults
