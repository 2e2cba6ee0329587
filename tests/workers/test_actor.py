"""The code in the process of a Ray worker, without Ray."""

from pathlib import Path
from typing import Any

import pytest

from disa.runtime.outputs.formats.format import Unit
from disa.runtime.outputs.layout import Layout
from disa.runtime.outputs.selection import ImageRow
from disa.runtime.stats import Stats
from disa.workers import actor as actor_module
from disa.workers.actor import Destination, UnitActor
from disa.workers.job import Job
from disa.workers.unit_worker import UnitWorker

UNIT = Unit(0, [ImageRow(0, 3, 0)], [0])


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long a worker waits, which it does not."""
    times: list[float] = []
    monkeypatch.setattr(actor_module.time, "sleep", times.append)
    return times


def worker(monkeypatch: pytest.MonkeyPatch) -> UnitActor:
    """A worker whose pipeline generates nothing."""
    found = UnitActor(Job("a.plan"))
    found._pipe, found._options = None, None  # type: ignore[assignment]

    def generate(self: UnitWorker, unit: Unit) -> Any:
        return [], Stats(images=1)

    monkeypatch.setattr(UnitWorker, "generate", generate)
    monkeypatch.setattr(UnitWorker, "write", lambda *_: None)
    return found


def test_a_folder_that_is_another_one_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    """Images would be lost there, and only the end of the run would show it."""
    there = worker(monkeypatch)
    place = Destination(str(tmp_path / "run"), Layout(), 1)
    answer = there.run(place, UNIT)
    assert isinstance(answer, str)
    assert "is not the folder of this run: give one with -o that all machines share" in answer
    assert sum(waited) == 5
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: list[float]
) -> None:
    there, place = worker(monkeypatch), Destination(str(tmp_path), Layout(), 1)
    (tmp_path / "run.json").touch()
    assert there.run(place, UNIT) == Stats(images=1)
    (tmp_path / "run.json").unlink()  # It is looked for once.
    assert there.run(place, UNIT) == Stats(images=1)
    assert waited == []
