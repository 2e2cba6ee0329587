from pathlib import Path

import pytest

from disa.runtime.pipeline import Pipeline


@pytest.fixture(scope="session")
def pixel_pipeline(pixel_plan: Path) -> Pipeline:
    return Pipeline.from_plan(pixel_plan, "cpu")
