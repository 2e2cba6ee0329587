"""A cache of its own for every test."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `DISA_CACHE` names during a test."""
    monkeypatch.setenv("DISA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
