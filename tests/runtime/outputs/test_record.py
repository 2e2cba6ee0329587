import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from disa import __version__
from disa.errors import DisaError
from disa.runtime.outputs import record
from disa.runtime.outputs.layout import Layout
from disa.runtime.outputs.record import RunRecord, differing_options
from disa.runtime.outputs.remote import RemoteStore
from disa.runtime.outputs.selection import Selection
from disa.runtime.outputs.store import LocalStore
from disa.runtime.stats import Stats


def load(folder: Path, request: dict[str, Any]) -> RunRecord | None:
    content = {"request": request, "conditions": ["a dog"], "stats": Stats().to_json()}
    (folder / "run.json").write_text(json.dumps(content))
    return RunRecord.load(LocalStore(folder))


@pytest.mark.parametrize(
    ("grid", "size"), [("(32, 32)", "512"), ("(24, 40)", "640x384"), ("(4, 4)", "64")]
)
def test_options_of_the_first_version(grid: str, size: str, tmp_path: Path) -> None:
    record = load(tmp_path, {"iterations": 64, "guidance_scale": 3.0, "grid": grid, "seed": 2})
    assert record
    expected = {"num_iterations": 64, "guidance_scale": 3.0, "size": size, "seed": 2}
    assert record.request == expected
    assert record.selection.seeds == 2


def test_a_missing_option_has_its_default() -> None:
    before = {"plan_sha256": "f" * 64, "guidance_scale": 3.0}
    after = {**before, "order": "random", "refresh": "None"}
    assert differing_options(after, before) == differing_options(after, after) == []
    for name, value in (("order", "checkerboard"), ("refresh", "9:5")):
        changed = {**after, name: value}
        assert differing_options(changed, before) == [name]
        assert differing_options(after, changed) == [name]
    assert differing_options(before, {**before, "plan_sha256": "0" * 64}) == ["plan_sha256"]
    assert differing_options({**before, "seed": 1}, before) == ["seed"]


@pytest.mark.parametrize(
    ("name", "same", "other"),
    [
        ("size", ("512", "512x512", " 512X512"), ("640x512", "512x640", "tall")),
        (
            "refresh",
            ("9:5", "every 9 after 5", "Every 9 : 5"),
            ("9:4", "5:9", "None", "0,1,2,3,4,13"),
        ),
        ("refresh", ("0,1,9", "9, 1,0", "1,9"), ("0,1", "0,1,9,10", "None")),
        ("guidance_scale", (3, 3.0), (3.5, 2)),
        # Both take 50 steps in all AR iterations, but at different timesteps.
        ("schedule", ("linear 50:50",), ("fixed 50:50", "linear 50:5")),
    ],
)
def test_options_are_compared_by_value(
    name: str, same: tuple[Any, ...], other: tuple[Any, ...]
) -> None:
    for one, two in itertools.product(same, same):
        assert differing_options({name: one}, {name: two}) == []
    for one, two in itertools.product(same, other):
        assert differing_options({name: one}, {name: two}) == [name]
        assert differing_options({name: two}, {name: one}) == [name]


@pytest.mark.parametrize("value", [None, 7, ["512"], "", "9:" * 9])
def test_a_value_that_is_none_of_an_option_is_another_one(value: Any) -> None:
    """The record is a file, which may have anything."""
    for name, usual in (("size", "512"), ("refresh", "9:5")):
        assert differing_options({name: usual}, {name: value}) == [name]
        assert differing_options({name: value}, {name: value}) == []


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    assert RunRecord.load(store) is None
    whole = RunRecord(
        {"plan": "tiny", "seed": 3},
        Selection([4, 2], ["a dog", "a cat"], [5, 6]),
        Layout("webdataset", shard_images=7, unit_images=2),
        "cpu",
        complete=True,
        stats=Stats({"head": 1.5}, images=2, head_calls=3, head_rows=4),
    )
    whole.save(store)
    assert RunRecord.load(store) == whole
    content = json.loads((tmp_path / "run.json").read_text())
    assert content == {"disa": __version__, **whole.to_json()}


def test_a_record_is_for_people_too(tmp_path: Path) -> None:
    """An entry a line, but lists of a million images on one line each."""
    listed = Selection([4, 2], [0, 1], [5, 6])
    RunRecord({"seed": 3}, listed, Layout(), "cpu", extra={"note": [1]}).save(LocalStore(tmp_path))
    lines = (tmp_path / "run.json").read_text().splitlines()
    assert lines[:5] == [
        "{",
        f' "disa": "{__version__}",',
        ' "complete": false,',
        ' "engine": "cpu",',
        ' "note": [',
    ]
    for line in (' "conditions": [0, 1],', ' "indices": [4, 2],', ' "seeds": [5, 6],'):
        assert line in lines
    assert lines[-1] == "}"


def test_a_record_without_what_came_later(tmp_path: Path) -> None:
    found = load(tmp_path, {"seed": 4})
    assert found
    assert (found.engine, found.complete, found.layout) == ("", False, Layout())
    assert found.selection.seeds == 4
    found = load(tmp_path, {})
    assert found
    assert found.selection.seeds == 0


@pytest.mark.parametrize("complete", [1, "true", None, False])
def test_only_true_is_complete(complete: Any, tmp_path: Path) -> None:
    load(tmp_path, {})
    content = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, "complete": complete}))
    found = RunRecord.load(LocalStore(tmp_path))
    assert found
    assert not found.complete


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"\xff", b"[" * 99_999, b'{"request": {}, "conditions": [0]}']
)
def test_damaged_records(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(data)
    told = r"run\.json is damaged, so the files of the run are not known: choose another folder"
    with pytest.raises(DisaError, match=told):
        RunRecord.load(LocalStore(tmp_path))


def test_a_record_may_have_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(tmp_path, {})
    size = (tmp_path / "run.json").stat().st_size
    monkeypatch.setattr(record, "MAX_BYTES", size)
    assert load(tmp_path, {})
    monkeypatch.setattr(record, "MAX_BYTES", size - 1)
    with pytest.raises(DisaError, match="damaged"):
        load(tmp_path, {})


def test_a_record_that_could_not_be_read_again_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its images are generated: a run without a record can neither go on nor be read."""
    store = LocalStore(tmp_path)
    large = RunRecord({}, Selection.of_seed(["a dog"] * 99, 0), Layout(), "cpu")
    large.save(store)
    size = (tmp_path / "run.json").stat().st_size
    monkeypatch.setattr(record, "MAX_BYTES", size)
    large.save(store)
    assert RunRecord.load(store) is not None
    monkeypatch.setattr(record, "MAX_BYTES", size - 1)
    with pytest.raises(DisaError, match=r"of 99 images take .* in several runs"):
        large.save(store)


def test_a_place_that_cannot_be_reached_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    store = RemoteStore("memory://records/run")

    def refused(path: str) -> bool:
        raise PermissionError(13, "the key is not valid", path)

    monkeypatch.setattr(store.fs, "exists", refused)
    with pytest.raises(DisaError, match=r"run/run\.json cannot be read: the key is not valid$"):
        RunRecord.load(store)
