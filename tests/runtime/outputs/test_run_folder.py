import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from disa.engines.plan.plan import Plan
from disa.errors import DisaError
from disa.runtime.outputs import run_folder
from disa.runtime.outputs.formats.format import Shard
from disa.runtime.outputs.image_files import encode_latents
from disa.runtime.outputs.layout import Layout
from disa.runtime.outputs.lock import FolderLock
from disa.runtime.outputs.run_folder import identify
from disa.runtime.stats import Stats

from .run_folders import REQUEST, names, open_folder, run, write


def test_the_second_run_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with open_folder(tmp_path, 4), pytest.raises(DisaError, match=f"process {os.getpid()} on"):
        open_folder(tmp_path, 4)
    assert names(tmp_path) == {"run.json"}
    run(tmp_path, 4)


def test_a_killed_run_frees_the_folder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from disa.runtime.outputs.lock import FolderLock\n"
        f"lock = FolderLock(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(DisaError, match=f"process {process.pid} on"):
            open_folder(tmp_path, 4)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(tmp_path, 4)["complete"]


def test_only_what_the_record_lists_is_deleted(tmp_path: Path) -> None:
    mine = {"20240131.png", "000007.png", "notes.txt", "0001/010000.png", "units-of-measure.jsonl"}
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    run(tmp_path, 4, overwrite=True)
    run(tmp_path, 6, overwrite=True)
    run(tmp_path, 2, overwrite=True)
    written = {"000000.png", "000001.png", "run.json", "units.jsonl", "grid.png"}
    assert names(tmp_path) == mine | written
    assert all((tmp_path / name).read_bytes() == b"mine" for name in mine)


@pytest.mark.parametrize("name", ["000003.png", "grid.png", "samples.npz"])
def test_files_of_nobodys_run_are_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(DisaError, match=r"no run\.json"):
            run(tmp_path, 4, **options)
    assert (tmp_path / name).read_bytes() == b"mine"
    assert names(tmp_path) == {name}


def test_a_longer_run_does_not_take_files_in(tmp_path: Path) -> None:
    run(tmp_path, 4)
    (tmp_path / "000005.png").write_bytes(b"mine")
    with pytest.raises(DisaError, match=r"no run\.json"):
        run(tmp_path, 6)
    assert (tmp_path / "000005.png").read_bytes() == b"mine"


def test_a_run_that_replaces_an_empty_one_does_not_take_files_in(tmp_path: Path) -> None:
    """The record of the empty run lists other images than the files that are there."""
    (tmp_path / "000001.png").write_bytes(b"mine")
    with open_folder(tmp_path, 4, first=100):
        pass
    with pytest.raises(DisaError, match=r"no run\.json"):
        run(tmp_path, 4)
    assert (tmp_path / "000001.png").read_bytes() == b"mine"
    (tmp_path / "000001.png").unlink()
    assert run(tmp_path, 4)["complete"]


def test_the_record_has_the_engines_of_all_images(tmp_path: Path) -> None:
    with open_folder(tmp_path, 4, engine="slow"):
        pass
    for count, engine, expected in (
        (4, "exact", "exact"),  # The slow one has generated nothing,
        (4, "quick", "exact"),  # nor has the quick one now,
        (6, "quick", "exact, then quick"),  # but now it has.
        (8, "quick", "exact, then quick"),
    ):
        assert run(tmp_path, count, engine=engine)["engine"] == expected


def test_units_keep_their_company(tmp_path: Path) -> None:
    run(tmp_path, 6)
    for name in ("000001.png", "000005.png"):
        (tmp_path / name).unlink()
    with open_folder(tmp_path, 7) as folder:
        units = list(folder.units(4))
        assert [(unit.start, unit.stop, list(unit.missing)) for unit in units] == [
            (0, 4, [1]),
            (4, 7, [1, 2]),
        ]


def test_an_image_that_goes_while_the_run_goes_on(tmp_path: Path) -> None:
    with open_folder(tmp_path, 4) as folder:
        for unit in folder.units(4):
            write(folder, unit)
        (tmp_path / "000002.png").unlink()
        with pytest.raises(DisaError, match="1 images were removed"):
            folder.finish(None)
    assert run(tmp_path, 4)["complete"]


def test_folders_for_further_ten_thousands(tmp_path: Path) -> None:
    assert run(tmp_path, 6, first=9_997)["first_image"] == 9_997
    images = {"009997.png", "009999.png", "0001/010000.png", "0001/010002.png"}
    assert images < names(tmp_path)
    with pytest.raises(DisaError, match="other image numbers"):
        run(tmp_path, 6)


def test_a_folder_of_the_first_version_goes_on(tmp_path: Path) -> None:
    run(tmp_path, 3)
    record = json.loads((tmp_path / "run.json").read_text())
    for field in ("layout", "first_image"):
        del record[field]
    (tmp_path / "run.json").write_text(json.dumps(record, indent=1))
    (tmp_path / "units.jsonl").unlink()
    record = run(tmp_path, 5)
    assert record["complete"]
    assert record["stats"]["images"] == 5
    assert (tmp_path / "units.jsonl").read_text().count("\n") == 1 + 2


def test_a_run_from_before_an_option_existed_goes_on(tmp_path: Path) -> None:
    run(tmp_path, 3)
    with pytest.raises(DisaError, match="other order"):
        run(tmp_path, 5, request={**REQUEST, "order": "checkerboard"})
    record = run(tmp_path, 5, request={**REQUEST, "order": "random", "refresh": "None"})
    assert record["stats"]["images"] == 5
    assert record["request"]["order"] == "random"


def test_the_log_grows_and_survives_a_cut_line(tmp_path: Path) -> None:
    run(tmp_path, 4)
    log = tmp_path / "units.jsonl"
    before = log.read_bytes()
    log.write_bytes(before + b'{"images": [4, 8], "st')
    assert run(tmp_path, 8)["stats"]["images"] == 8
    assert log.read_bytes().startswith(before)


def test_the_record_may_be_anything(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(DisaError, match=r"run\.json cannot be read: it is not a regular file"):
        run(tmp_path, 4)


def test_a_plan_is_its_manifest(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        content = json.dumps(plan.manifest.raw, sort_keys=True)
        assert identify(plan) == hashlib.sha256(content.encode()).hexdigest()


SHARDED = Layout("webdataset", shard_images=5, unit_images=2)


def test_units_and_shards_from_the_start_to_the_end(tmp_path: Path) -> None:
    with open_folder(tmp_path, 12, layout=SHARDED) as folder:
        assert (folder.missing(), folder.shards()) == (12, [])
        units = list(folder.units(99))
        places = [(0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10), (10, 12)]
        assert [(unit.start, unit.stop) for unit in units] == places
        assert [list(unit.missing) for unit in units[1:3]] == [[0, 1], [0]]
        assert units[3].rows == folder.selection.rows(5, 7)
        ready = [folder.finished(unit, Stats()) for unit in units]
        assert ready == [[], [], [Shard(0, 5)], [], [], [Shard(5, 10)], [Shard(10, 12)]]
        assert (folder.missing(), list(folder.units(99))) == (0, [])
        assert folder.shards() == [Shard(0, 5), Shard(5, 10), Shard(10, 12)]
        folder.assembled(Shard(5, 10))
        folder.assembled(Shard(5, 10))
        assert folder.shards() == [Shard(0, 5), Shard(10, 12)]
        assert folder.finished(units[3], Stats()) == []


def test_a_run_is_complete_when_its_shards_are(tmp_path: Path) -> None:
    from disa.runtime.outputs.formats.registry import format_of

    with open_folder(tmp_path, 3, layout=SHARDED) as folder:
        for unit in folder.units(99):
            write(folder, unit)
        format_of(SHARDED).assemble(folder.store, Shard(0, 3), folder.selection)
        assert not folder.finish(None)["complete"]
        folder.assembled(Shard(0, 3))
        assert folder.finish(None)["complete"]
    with open_folder(tmp_path, 3, layout=SHARDED) as folder:
        assert (folder.missing(), folder.shards()) == (0, [])


def test_a_folder_has_no_shards(tmp_path: Path) -> None:
    with open_folder(tmp_path, 3) as folder:
        (unit,) = folder.units(3)
        assert folder.finished(unit, Stats()) == []
        assert folder.shards() == []


def test_a_run_in_shards_keeps_its_units(tmp_path: Path) -> None:
    run(tmp_path, 3, layout=Layout())
    place = tmp_path / "shards"
    with open_folder(place, 4, layout=SHARDED) as folder:
        write(folder, next(folder.units(99)))
    other = Layout("webdataset", shard_images=5, unit_images=3)
    with open_folder(place, 4, layout=other) as folder:
        assert folder.layout == SHARDED
        assert [(unit.start, unit.stop) for unit in folder.units(99)] == [(2, 4)]
    with pytest.raises(DisaError, match=r"a run of 4 images in shards, which cannot be .* to 5: "):
        open_folder(place, 5, layout=SHARDED)
    larger = Layout("webdataset", shard_images=6, unit_images=2)
    with pytest.raises(DisaError, match=r"has another run \(other format\)"):
        open_folder(place, 4, layout=larger)
    with pytest.raises(DisaError, match=r"has another run \(other seed, format\)"):
        open_folder(place, 5, layout=larger, request={**REQUEST, "seed": 4})


def test_a_run_without_images_gives_way(tmp_path: Path) -> None:
    with open_folder(tmp_path, 4):
        pass
    assert run(tmp_path, 2, request={**REQUEST, "plan": "other"})["complete"]
    assert json.loads((tmp_path / "run.json").read_text())["request"]["plan"] == "other"


def test_a_shorter_run_keeps_the_longer_record(tmp_path: Path) -> None:
    run(tmp_path, 6)
    (tmp_path / "000005.png").unlink()
    record = run(tmp_path, 4)
    assert (len(record["conditions"]), record["complete"]) == (6, False)
    assert record["stats"]["images"] == 6
    with open_folder(tmp_path, 4) as folder:
        assert folder.missing() == 0
    (tmp_path / "000002.png").unlink()
    with open_folder(tmp_path, 4) as folder:
        assert folder.missing() == 1
    assert run(tmp_path, 6)["complete"]


def test_the_grid_has_the_first_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "GRID_IMAGES", 2)
    run(tmp_path, 5)
    # Two of 72 pixels side by side, and the margins.
    assert Image.open(tmp_path / "grid.png").width == 4 + 2 * (72 + 4)


def test_a_lost_lock_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: FolderLock) -> None:
        raise DisaError("taken over")

    with open_folder(tmp_path, 3) as folder:
        monkeypatch.setattr(FolderLock, "check", lost)
        with pytest.raises(DisaError, match="taken over"):
            write(folder, next(folder.units(4)))
        with pytest.raises(DisaError, match="taken over"):
            folder.finish(None)
    assert not json.loads((tmp_path / "run.json").read_text())["complete"]


def test_latents_have_no_grid(tmp_path: Path) -> None:
    from disa.runtime.outputs.formats.registry import format_of

    with open_folder(tmp_path, 1) as folder:
        (unit,) = folder.units(1)
        files = {0: encode_latents(np.zeros((1, 2, 2), np.float32))}
        format_of(folder.layout).write(folder.store, unit, files)
        folder.finished(unit, Stats())
        assert folder.finish(None)["complete"]
    assert names(tmp_path) == {"000000.npy", "run.json", "units.jsonl"}


def test_the_log_names_images_and_workers(tmp_path: Path) -> None:
    with open_folder(tmp_path, 4) as folder:
        first, second = folder.units(2)
        folder.finished(first, Stats(), "one")
        folder.finished(second, Stats())
    lines = (tmp_path / "units.jsonl").read_text().splitlines()
    empty = Stats().to_json()
    assert list(map(json.loads, lines)) == [
        {"images": [0, 2], "worker": "one", "stats": empty},
        {"images": [2, 4], "stats": empty},
    ]


def test_a_run_of_version_1_has_its_cost_in_the_log_once(tmp_path: Path) -> None:
    with open_folder(tmp_path, 3):
        pass
    assert not (tmp_path / "units.jsonl").exists()
    run(tmp_path, 3)
    (tmp_path / "units.jsonl").unlink()
    for _ in range(2):
        assert run(tmp_path, 3)["stats"]["images"] == 3
    lines = (tmp_path / "units.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines if line] == [[0, 3]]


def test_what_a_killed_writer_left_is_deleted(tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "half").touch()
    with open_folder(tmp_path, 1):
        assert not (tmp_path / ".partial" / "half").exists()
        (tmp_path / ".partial").mkdir(exist_ok=True)
        (tmp_path / ".partial" / "half").touch()
    assert names(tmp_path) == {"run.json"}


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DisaError, match="a file or in a file, not a folder: choose another"):
        open_folder(tmp_path / "file" / "run", 1)
    with pytest.raises(DisaError, match="a file or in a file, not a folder: choose another"):
        open_folder(tmp_path / "file", 1)


def test_metadata_of_nobodys_run_is_not_replaced(tmp_path: Path) -> None:
    """GenEval's own folders have this file before there are images."""
    (tmp_path / "00001").mkdir()
    (tmp_path / "00001" / "metadata.jsonl").write_bytes(b"mine")
    layout = Layout("geneval", prompts=2)
    with pytest.raises(DisaError, match=r"no run\.json"):
        open_folder(tmp_path, 4, layout=layout)
    (tmp_path / "00001" / "metadata.jsonl").unlink()
    run(tmp_path, 4, layout=layout)
    (tmp_path / "00001" / "metadata.jsonl").write_bytes(b"of the run")
    run(tmp_path, 4, layout=layout)
