import json
from itertools import accumulate
from pathlib import Path

import pytest

from benchmarks.records import choose, least, read_entries, write_entries
from disa.errors import DisaError


def test_entries_are_kept_and_ordered(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert read_entries(path, "sizes") == {}
    write_entries(path, "sizes", {"b": {"n": 2}}, ["a", "b"])
    entries = read_entries(path, "sizes") | {"a": {"n": 1}}
    write_entries(path, "sizes", entries, ["a", "b"])
    record = json.loads(path.read_text())
    assert list(record["entries"]) == ["a", "b"]
    assert record["machine"]["cores"] >= 1
    assert "torch" in record["versions"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"kind": "sizes"}', '{"kind": "sizes", "entries": 3}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DisaError, match="not a record of sizes"):
        read_entries(path, "sizes")


def test_another_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_entries(path, "costs", {}, [])
    with pytest.raises(DisaError, match="a record of costs, not of sizes"):
        read_entries(path, "sizes")


def test_names_are_chosen() -> None:
    assert choose(None, ["a", "b"]) == ["a", "b"]
    assert choose("b, a", ["a", "b"]) == ["b", "a"]
    for wrong in ("c", "", "a,,b"):
        with pytest.raises(DisaError, match="choose from a, b"):
            choose(wrong, ["a", "b"])


def test_the_least_of_the_tries_without_the_first_call() -> None:
    calls = []
    readings = iter(accumulate([0, 3, 1, 2, 1, 5]))  # Tries of 3, 2 and 5 seconds.

    assert least(lambda: calls.append(None), lambda: next(readings), tries=3) == 2
    assert len(calls) == 4
