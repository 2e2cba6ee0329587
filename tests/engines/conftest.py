"""A plan of tiny graphs."""

from pathlib import Path

import pytest

from .tiny_graphs import backbone, head, shuffle, write_plan


@pytest.fixture(scope="session")
def plan_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a whole and sound plan with the graphs `head`, `backbone` and `shuffle`."""
    return write_plan(
        tmp_path_factory.mktemp("plan") / "tiny.plan", [head(), backbone(), shuffle()]
    ).read_bytes()


@pytest.fixture
def plan_path(tmp_path: Path, plan_bytes: bytes) -> Path:
    """The path of a copy of that plan."""
    path = tmp_path / "tiny.plan"
    path.write_bytes(plan_bytes)
    return path
