"""Shards and their parts: names, and which images are there."""

from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.runtime.outputs.formats.format import Shard, Unit
from disa.runtime.outputs.formats.sharded import ShardedFormat
from disa.runtime.outputs.formats.webdataset import WebDataset
from disa.runtime.outputs.image_files import ImageFile
from disa.runtime.outputs.layout import Layout
from disa.runtime.outputs.selection import Selection
from disa.runtime.outputs.store import LocalStore

FORMAT = ShardedFormat(WebDataset(), Layout("webdataset", shard_images=4, unit_images=3))
TEN = Selection.of_seed([index % 3 for index in range(10)], 0)


def write(store: LocalStore, start: int, stop: int) -> None:
    rows = TEN.rows(start, stop)
    files = {i: ImageFile("png", b"%d" % row.index, 1, 1) for i, row in enumerate(rows)}
    FORMAT.write(store, Unit(start, rows, range(len(rows))), files)


def test_names_are_numbers() -> None:
    container = WebDataset()
    for number, name in ((0, "000000.tar"), (1_234_567, "1234567.tar")):
        assert container.name(number) == name
        assert container.number(name) == number
    for name in ("00000.tar", "0000001.tar", "000001.png", "data/000001.tar"):
        assert container.number(name) is None


def test_a_shard_is_made_of_its_parts(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    parts = [(0, 3), (3, 4), (4, 7), (7, 8), (8, 10)]
    for start, stop in parts:
        write(store, start, stop)
    names = [f"parts/{start:09d}-{stop:09d}.tar" for start, stop in parts]
    assert sorted(store.names()) == names
    progress = FORMAT.progress(store, TEN)
    assert (progress.present, progress.shards) == (bytearray(b"\1" * 10), frozenset())
    FORMAT.assemble(store, Shard(4, 8), TEN)
    assert sorted(store.names()) == ["000001.tar", *names[:2], names[4]]
    progress = FORMAT.progress(store, TEN)
    assert (progress.present, progress.shards) == (bytearray(b"\1" * 10), {Shard(4, 8)})
    FORMAT.assemble(store, Shard(8, 10), TEN)
    FORMAT.assemble(store, Shard(0, 4), TEN)
    assert sorted(store.names()) == ["000000.tar", "000001.tar", "000002.tar"]
    assert FORMAT.progress(store, TEN).shards == {Shard(0, 4), Shard(4, 8), Shard(8, 10)}
    found = list(FORMAT.read(store, TEN))
    assert [image.row for image in found] == TEN.rows(0, 10)
    assert [image.file.data for image in found] == [b"%d" % index for index in range(10)]
    assert found[4].where == f"{tmp_path}/000001.tar: 000004"


def test_a_shard_that_exists_is_kept(tmp_path: Path) -> None:
    """Another worker may have made it, and has removed the parts."""
    store = LocalStore(tmp_path)
    (tmp_path / "000000.tar").write_bytes(b"whole")
    write(store, 0, 3)
    FORMAT.assemble(store, Shard(0, 4), TEN)
    assert (tmp_path / "000000.tar").read_bytes() == b"whole"
    assert list(store.names()) == ["000000.tar"]


def test_a_shard_with_parts_left_is_not_finished(tmp_path: Path) -> None:
    """A worker was stopped after it had written the shard, and before it deleted its parts."""
    store = LocalStore(tmp_path)
    for name in ("000001.tar", "000002.tar"):
        (tmp_path / name).write_bytes(b"whole")
    write(store, 4, 7)
    assert FORMAT.progress(store, TEN).shards == {Shard(8, 10)}


@pytest.mark.parametrize(
    "name",
    [
        "000003.tar",  # Of images from 12 on.
        "parts/000000008-000000011.tar",
        "parts/000000003-000000003.tar",
        "parts/000000004-000000003.tar",
        "parts/0000000000-000000003.tar",
        "parts/00000000-00000003.tar",
        "parts/notes.tar",
        "data/000000.tar",
    ],
)
def test_other_files_are_nobodys_images(name: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write(store, 8, 10)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    assert list(FORMAT.owned(store, TEN)) == ["parts/000000008-000000010.tar"]
    progress = FORMAT.progress(store, TEN)
    assert (list(progress.present), progress.shards) == ([0] * 8 + [1] * 2, frozenset())


def test_the_last_shard_begins_before_the_end(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "000002.tar").write_bytes(b"")
    eight, nine = (Selection.of_seed([0] * count, 0) for count in (8, 9))
    assert list(FORMAT.owned(store, eight)) == []
    assert FORMAT.progress(store, nine).shards == {Shard(8, 9)}


def test_a_shard_that_is_missing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(DisaError, match=r"lacks 000000\.tar: run again to generate it"):
        list(FORMAT.read(store, TEN))
