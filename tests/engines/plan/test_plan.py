import os
import zlib
from pathlib import Path

import pytest

from disa.engines.plan.archive import ArchiveWriter
from disa.engines.plan.onnx_file import Extent
from disa.engines.plan.plan import Plan
from disa.errors import DisaError

from ..tiny_graphs import head


def test_members_are_views_of_the_mapped_file(plan_path: Path, plan_bytes: bytes) -> None:
    with Plan.open(plan_path) as plan:
        data = plan.read("graphs/head.data")
        assert data == head().data
        assert data.readonly
        offset = plan.offset("graphs/head.data")
        assert plan_bytes[offset : offset + len(data)] == head().data
        assert plan.size == len(plan_bytes)


def test_graphs_are_found_by_name(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        assert plan.graph("head").inputs == head().inputs
        with pytest.raises(DisaError, match="no graph named tail: it has head, backbone, shuffle"):
            plan.graph("tail")
        with pytest.raises(DisaError, match="no member graphs/tail"):
            plan.read("graphs/tail")


def test_a_closed_plan_says_so_and_its_views_live_on(plan_path: Path) -> None:
    plan = Plan.open(plan_path)
    data = plan.read("graphs/head.data")
    plan.close()
    plan.close()
    assert data == head().data
    with pytest.raises(DisaError, match="was closed"):
        plan.read("graphs/head.data")


def test_check_reads_everything_and_names_what_is_damaged(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        counts: list[int] = []
        plan.check(counts.append)
        assert sum(counts) == sum(member.size for member in plan.manifest.members.values())
        offset = plan.offset("graphs/backbone.data")
    with open(plan_path, "r+b") as file:
        file.seek(offset + 5)
        byte = file.read(1)[0]
        file.seek(offset + 5)
        file.write(bytes([byte ^ 1]))
    with Plan.open(plan_path) as plan:
        plan.check_member("graphs/head.data")
        with pytest.raises(DisaError, match=r"checksum of graphs/backbone\.data does not match"):
            plan.check()


def test_a_plan_that_is_replaced_is_noticed(plan_path: Path, plan_bytes: bytes) -> None:
    with Plan.open(plan_path) as plan:
        plan.check_unchanged()
        other = plan_path.with_name("other")
        other.write_bytes(plan_bytes)
        os.replace(other, plan_path)
        with pytest.raises(DisaError, match="replaced or changed while it was in use"):
            plan.check_unchanged()
        plan_path.unlink()
        with pytest.raises(DisaError, match="replaced or changed"):
            plan.check_unchanged()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in [
        (tmp_path / "none.plan", "there is no plan at .*none.plan: make one with disa-export"),
        (tmp_path, "is a folder: give the plan file in it"),
        (tmp_path / "fifo", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "a\0b", "cannot be opened"),
        (tmp_path / ("x" * 300), "cannot be opened"),
    ]:
        with pytest.raises(DisaError, match=message):
            Plan.open(path)


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with open(path, "w+b") as file:
        writer = ArchiveWriter(file)
        for name, data in members.items():
            writer.add(name, len(data), [data])
        writer.finish()
    return path


def test_only_a_plan_that_is_overwritten_in_place_changes_what_is_mapped(
    plan_path: Path, plan_bytes: bytes
) -> None:
    with Plan.open(plan_path) as plan:
        plan.check_not_overwritten()
        other = plan_path.with_name("other")
        other.write_bytes(plan_bytes)
        other.replace(plan_path)
        plan.check_not_overwritten()
        plan_path.unlink()
        plan.check_not_overwritten()
    plan_path.write_bytes(plan_bytes)
    with Plan.open(plan_path) as plan:
        os.utime(plan_path, ns=(0, 0))
        with pytest.raises(DisaError, match="was overwritten while it was in use"):
            plan.check_not_overwritten()


def test_archives_that_are_no_plans(tmp_path: Path, plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        members = {name: bytes(plan.read(name)) for name in plan.manifest.members}
        manifest = bytes(plan.read("manifest.json"))
    newer = manifest.replace(b'"format": 2', b'"format": 9')
    lying = {**members, "graphs/head.data": b"short"}
    fewer = {name: data for name, data in members.items() if name != "graphs/head.data"}
    for content, message in [
        ({**members, "manifest.json": manifest}, "first member is not manifest.json"),
        ({"manifest.json": bytes(3 << 20)}, "manifest claims 3145728 bytes"),
        ({"manifest.json": bytes((2 << 20) + 1)}, "manifest claims 2097153 bytes"),
        ({"manifest.json": b" " * (2 << 20)}, "not valid JSON"),
        ({"manifest.json": b"{}"}, "lacks format"),
        ({"manifest.json": newer, **members}, "format 9, made by a newer disa"),
        ({"manifest.json": manifest, **lying}, r"head\.data does not have the size"),
        ({"manifest.json": manifest, **fewer}, r"differ in graphs/head\.data"),
        ({"manifest.json": manifest, **members, "x": b""}, "differ in x"),
    ]:
        path = archive(tmp_path / "bad.plan", content)
        with pytest.raises(DisaError, match=message) as caught:
            Plan.open(path)
        assert str(path) in str(caught.value)


def test_a_changed_manifest_is_noticed(plan_path: Path, plan_bytes: bytes) -> None:
    at = plan_bytes.index(b"50:5")
    plan_path.write_bytes(plan_bytes[:at] + b"60:5" + plan_bytes[at + 4 :])
    with pytest.raises(DisaError, match="its manifest is damaged"):
        Plan.open(plan_path)


def test_checksums_of_the_zip_are_right(plan_path: Path, plan_bytes: bytes) -> None:
    with Plan.open(plan_path) as plan:
        crc = zlib.crc32(plan.read("graphs/head.onnx"))
    assert crc.to_bytes(4, "little") in plan_bytes


def test_weights_are_found_by_the_names_in_the_graph(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        extents = plan.extents(plan.graph("head"))
        assert extents == {"head.data": Extent(plan.offset("graphs/head.data"), len(head().data))}
        assert plan.extents(plan.graph("shuffle")) == {}


def test_progress_is_told_in_pieces(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disa.engines.plan.plan._CHUNK", 60)
    with Plan.open(plan_path) as plan:
        counts: list[int] = []
        plan.check_member("graphs/head.data", counts.append)
    size = len(head().data)
    assert counts == [60] * (size // 60) + [size % 60]


def test_a_file_that_changes_is_another(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        status = plan_path.stat()
        os.utime(plan_path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        with pytest.raises(DisaError, match="replaced or changed while it was in use"):
            plan.check_unchanged()
