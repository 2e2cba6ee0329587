import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from disa.bench.report import compare, read_record, steps_of, summary, write_record
from disa.errors import DisaError


def test_records_are_compared(record: dict[str, Any]) -> None:
    slower = copy.deepcopy(record)
    for entry in slower["variants"]:
        entry["seconds_an_image"]["median"] *= 2
    assert compare(slower, record).count("2.00x") == 4
    slower["variants"] = slower["variants"][:1]
    assert compare(slower, record).count("2.00x") == 1
    slower["machine"]["processor"], slower["plan"]["name"] = "Abacus", "other"
    assert "another machine: Abacus" in compare(slower, record)
    assert "another plan: other" in compare(slower, record)
    slower["threads"], slower["plan"]["precision"] = None, "int8"
    slower["engines"] = {"cpu": {"runs": "slide rule"}, "auto": {"runs": "fingers"}}
    told = compare(slower, record)
    assert "another number of threads: all" in told
    assert "a plan in another precision: int8" in told
    assert "another engine for cpu: slide rule" in told
    assert "fingers" not in told
    assert "old record is of" not in compare(record, record)
    slower["variants"][0]["batch_size"] = 64
    with pytest.raises(DisaError, match="no variant in common"):
        compare(slower, record)


def test_the_steps_of_a_plan_with_a_schedule_are_those_of_the_schedule() -> None:
    options = {"steps": "50:5", "schedule": {"steps": [9, 7, 3]}}
    assert steps_of({"options": options}) == "fitted 9:3"
    assert steps_of({"options": {"steps": "50:5", "strategy": "cosine"}}) == "50:5 cosine"


def test_a_family_without_a_floor_is_still_shown(record: dict[str, Any]) -> None:
    without = copy.deepcopy(record)
    without["variants"][0] |= {"floor": None, "near_floor": None, "peak_memory_bytes": None}
    without["engines"]["cpu"]["matrix_rate"] = None
    assert "GFLOP/s" not in summary(without)
    assert len(summary(without).splitlines()) == len(summary(record).splitlines())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not valid JSON"),
        ("[]", "not a record"),
        ('{"format": 99}', "not a record"),
        ('{"format": 1}', "damaged .KeyError..variants"),
        ('{"format": 1, "variants": [{}]}', "damaged"),
    ],
)
def test_what_is_no_record(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(content)
    with pytest.raises(DisaError, match=complaint):
        read_record(path)


def test_a_record_with_an_absurd_number(tmp_path: Path, record: dict[str, Any]) -> None:
    absurd = copy.deepcopy(record)
    absurd["variants"][0]["seconds_an_image"]["median"] = 10**400
    write_record(absurd, tmp_path / "absurd.json")
    with pytest.raises(DisaError, match="a number that is too large"):
        read_record(tmp_path / "absurd.json")


def test_a_record_is_written_whole_or_not(tmp_path: Path, record: dict[str, Any]) -> None:
    path = tmp_path / "new.json"
    write_record(record, path)
    assert read_record(path) == json.loads(json.dumps(record))
    with pytest.raises(DisaError, match="cannot be written"):
        write_record(record, tmp_path / "nowhere" / "new.json")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", ["/dev/zero", "fifo"])
def test_records_are_regular_files(path: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DisaError, match="not a regular file"):
        read_record(tmp_path / path)
