"""The cost of each unit, one a line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from disa.runtime.outputs import unit_log
from disa.runtime.outputs.remote import RemoteStore
from disa.runtime.outputs.store import LocalStore
from disa.runtime.outputs.unit_log import UnitLog
from disa.runtime.stats import Stats

COST = Stats({"head": 2.0}, images=3, head_calls=5, head_rows=7)


@pytest.fixture
def bucket() -> Iterator[RemoteStore]:
    """A store without appending."""
    found = RemoteStore("memory://log")
    yield found
    found.fs.store.clear()


def test_lines_are_appended_at_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    log = UnitLog(store)
    for number in range(2):
        log.add(COST, {"images": [number, number + 1]})
        lines = (tmp_path / "units.jsonl").read_text().splitlines()
        assert len(lines) == number + 1
        assert json.loads(lines[number]) == {
            "images": [number, number + 1],
            "stats": COST.to_json(),
        }
    assert log.names() == ["units.jsonl"]
    total = log.total()
    assert (total.seconds, total.images) == ({"head": 4.0}, 6)
    before = (tmp_path / "units.jsonl").read_bytes()
    log.flush()
    assert (tmp_path / "units.jsonl").read_bytes() == before


def test_lines_that_are_none(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    UnitLog(store).add(COST, {})
    lines = [b"[]", b"{}", b'{"stats": 3}', b"\xff", b"[" * 99_999, b'{"stats": {"seconds": {}}}']
    infinite = b'{"stats": {"seconds": {}, "images": 1e999, "head_calls": 0, "head_rows": 0}}'
    store.append("units.jsonl", b"\n".join([*lines, infinite, b'{"stats']))
    log = UnitLog(store)
    log.add(COST, {})
    assert log.total().images == 6


def test_a_bucket_gets_a_file_every_half_minute(
    bucket: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(unit_log.time, "monotonic", lambda: clock[0])
    log = UnitLog(bucket)
    files = []
    for now in (101.0, 129.9, 130.0, 130.1, 131.0, 160.0, 160.2):
        clock[0] = now
        log.add(COST, {})
        files.append(len(log.names()))
    assert files == [0, 0, 0, 1, 1, 1, 2]
    assert log.total().images == 3 * 7
    log.flush()
    assert len(log.names()) == 2
    log.add(COST, {})
    log.flush()
    assert (len(log.names()), log.total().images) == (3, 3 * 8)


def test_other_files_are_no_log(tmp_path: Path) -> None:
    names = {"units.jsonl", f"units-{'0f' * 16}.jsonl"}
    others = {"units-1.jsonl", f"units-{'0g' * 16}.jsonl", "units.jsonl.bak", "units-of.jsonl"}
    for name in names | others:
        (tmp_path / name).touch()
    assert set(UnitLog(LocalStore(tmp_path)).names()) == names
