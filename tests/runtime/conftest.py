from pathlib import Path

import pytest

from disa.engines.plan import Plan
from disa.engines.plan_writer import PlanWriter
from disa.exporter.tokenizer import read_tokenizer
from disa.runtime.pipeline import Pipeline
from disa.runtime.prompt import TOKENIZER_MEMBER

from ..conftest import ExportGolden
from ..tiny_tokenizer import write_vocabulary


@pytest.fixture(scope="session")
def pixel_pipeline(pixel_plan: Path) -> Pipeline:
    return Pipeline.from_plan(pixel_plan, "cpu")


@pytest.fixture(scope="session")
def text_plan(golden_plan: ExportGolden, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden plan of Harmon with a tokenizer in it."""
    folder = tmp_path_factory.mktemp("harmon")
    data = read_tokenizer(write_vocabulary(folder / "tokenizer"), 200)
    path = folder / "text.plan"
    with Plan.open(golden_plan("harmon")) as plan, PlanWriter.extend(plan, path) as writer:
        writer.add(TOKENIZER_MEMBER, data)
    return path
