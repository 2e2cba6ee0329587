from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_plan import CALIBRATION, TINY, random_vae, write_plan
from disa.engines.plan.plan import Plan
from disa.errors import DisaError
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


def test_a_decoder_to_pixels_can_be_added(tmp_path: Path) -> None:
    path = write_plan(TINY, "fp32", tmp_path / "tiny.plan", vae_width=32)
    images = Pipeline.from_plan(path)(1).images
    assert images is not None
    assert images.shape == (1, TINY.img_size, TINY.img_size, 3)
    with pytest.raises(DisaError, match="48 channels of the VAE do not divide"):
        random_vae(tmp_path / "vae.ckpt", 48)
