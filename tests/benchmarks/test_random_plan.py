from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_plan import CALIBRATION, TINY, write_plan
from disa.engines.plan import Plan
from disa.runtime.pipeline import Pipeline


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_plan_of_any_precision_draws(tmp_path: Path, precision: str) -> None:
    path = write_plan(TINY, precision, tmp_path / "tiny.plan")

    with Plan.open(path) as plan:
        assert plan.manifest.precision == precision
        quantized = precision == "int8"
        assert (plan.manifest.defaults["steps"] == CALIBRATION["steps"]) == quantized
    latents = Pipeline.from_plan(path)(1).latents
    assert np.isfinite(latents).all()
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.plan"]
