from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_plan import CALIBRATION, TINY, write_plan
from disa.engines.plan.plan import Plan
from disa.exporter.families.configs.xar import XARConfig
from disa.runtime.pipeline import Pipeline


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
    config = XARConfig(
        encoder_embed_dim=16,
        encoder_depth=1,
        encoder_num_heads=2,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
        vae_embed_dim=16,
        class_num=10,
    )
    path = write_plan(config, "int8", tmp_path / "xar.plan")
    with Plan.open(path) as plan:
        assert (plan.manifest.family, plan.manifest.precision) == ("xar", "int8")
        assert "num_iterations" not in plan.manifest.defaults
