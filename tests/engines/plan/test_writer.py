import errno
import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from disa.engines.plan.plan import Plan, PlanWriter
from disa.errors import DisaError

from ..tiny_graphs import CONTENT, HEAD_ENGINE, backbone, head, shuffle, write_plan


def test_members_come_from_bytes_and_from_files(tmp_path: Path) -> None:
    large = tmp_path / "large.data"
    large.write_bytes(os.urandom(9 << 20))
    path = tmp_path / "new" / "folder" / "a.plan"
    with PlanWriter(path) as writer:
        writer.content.update(CONTENT)
        writer.add("bytes", b"123")
        writer.add("view", memoryview(b"4567")[1:])
        writer.add("file", large)
    with Plan.open(path) as plan:
        plan.check()
        assert [bytes(plan.read(name)) for name in ("bytes", "view")] == [b"123", b"567"]
        assert plan.read("file") == large.read_bytes()
        assert plan.manifest.class_names == ("bag", "boot", "coat")
    assert os.listdir(path.parent) == ["a.plan"]
    with zipfile.ZipFile(path) as unzipped:
        assert unzipped.namelist()[0] == "manifest.json"
        assert unzipped.testzip() is None


def test_equal_plans_are_equal_files(tmp_path: Path, plan_bytes: bytes) -> None:
    assert (
        write_plan(tmp_path / "again.plan", [head(), backbone(), shuffle()]).read_bytes()
        == plan_bytes
    )


def test_graphs_may_share_their_data(tmp_path: Path) -> None:
    (tmp_path / "head.data").write_bytes(head().data)
    with PlanWriter(tmp_path / "a.plan", CONTENT) as writer:
        for name in ("head", "tail"):
            data = [tmp_path / "head.data"]
            writer.add_graph(name, head().onnx, data, head().inputs, head().outputs, head().traits)
    with Plan.open(tmp_path / "a.plan") as plan:
        assert plan.graph("head").data == plan.graph("tail").data == ("graphs/head.data",)


def test_members_have_distinct_and_plain_names(tmp_path: Path) -> None:
    with PlanWriter(tmp_path / "a.plan", CONTENT) as writer:
        writer.add("a", b"")
        for name in ("a", "manifest.json", "../a", "", "/a"):
            with pytest.raises(DisaError, match="named"):
                writer.add(name, b"")


def test_an_engine_is_added_in_place(plan_path: Path) -> None:
    before = plan_path.read_bytes()
    with Plan.open(plan_path) as plan:
        with PlanWriter.extend(plan) as writer:
            writer.add_engine(HEAD_ENGINE, b"engine")
        # What was opened before stays what it was.
        assert plan.read("graphs/head.data") == head().data
    with Plan.open(plan_path) as plan:
        plan.check()
        assert plan.manifest.engines == (HEAD_ENGINE,)
        assert plan.read("engines/head.engine") == b"engine"
        assert plan.read("graphs/head.data") == head().data
        assert plan.manifest.defaults == CONTENT["defaults"]
        with PlanWriter.extend(plan) as writer:
            writer.remove_engine(HEAD_ENGINE)
            writer.add_engine(HEAD_ENGINE, b"better")
    with Plan.open(plan_path) as plan:
        assert plan.read("engines/head.engine") == b"better"
        with PlanWriter.extend(plan, plan_path.with_name("bare.plan")) as writer:
            writer.remove_engine(HEAD_ENGINE)
    assert plan_path.with_name("bare.plan").read_bytes() == before


def test_damage_is_not_copied_under_a_new_checksum(plan_path: Path, plan_bytes: bytes) -> None:
    at = plan_bytes.index(head().data)
    damaged = plan_bytes[:at] + b"\xff" + plan_bytes[at + 1 :]
    plan_path.write_bytes(damaged)
    with (
        Plan.open(plan_path) as plan,
        pytest.raises(DisaError, match=r"checksum of graphs/head\.data does not match"),
        PlanWriter.extend(plan),
    ):
        pass
    assert plan_path.read_bytes() == damaged


def assert_untouched(path: Path, content: bytes) -> None:
    assert path.read_bytes() == content
    assert [name for name in os.listdir(path.parent) if name.startswith(".")] == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_what_was_there(
    plan_path: Path, plan_bytes: bytes, error: type[BaseException]
) -> None:
    def interrupted() -> None:
        with PlanWriter(plan_path, CONTENT) as writer:
            writer.add("a", b"1")
            raise error

    with pytest.raises(error):
        interrupted()
    assert_untouched(plan_path, plan_bytes)


@pytest.mark.parametrize(
    ("error", "caught", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), DisaError, "there is no space left for"),
        (OSError(errno.EIO, "Input/output error"), DisaError, "cannot be written: Input/output"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("where", ["ArchiveWriter.finish", "os.fsync", "os.replace"])
def test_a_failure_while_writing_leaves_what_was_there(
    plan_path: Path,
    plan_bytes: bytes,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    caught: type[BaseException],
    message: str | None,
    where: str,
) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(f"disa.engines.plan.writer.{where}", fail)
    with pytest.raises(caught, match=message), PlanWriter(plan_path, CONTENT) as writer:
        writer.add("a", b"1")
    assert_untouched(plan_path, plan_bytes)


def test_a_file_size_limit_of_the_system_is_told(plan_path: Path, plan_bytes: bytes) -> None:
    """A disk that is really full, as far as a test can make one."""
    code = """
        import resource, signal, sys
        from disa.engines.plan.writer import PlanWriter
        from disa.errors import DisaError

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        content = dict(family="a", name="b", precision="fp32", model={}, tokens={}, defaults={})
        try:
            with PlanWriter(sys.argv[1], content) as writer:
                writer.add("large", bytes(8 << 20))
        except DisaError as error:
            sys.exit(str(error))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), plan_path], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"{plan_path} cannot be written: File too large"
    assert_untouched(plan_path, plan_bytes)


def test_what_a_killed_writer_left_is_used_again(plan_path: Path, plan_bytes: bytes) -> None:
    code = """
        import os, signal, sys
        from disa.engines.plan.writer import PlanWriter

        with PlanWriter(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), plan_path])
    assert done.returncode == -signal.SIGKILL
    assert plan_path.read_bytes() == plan_bytes
    write_plan(plan_path, [head(), backbone(), shuffle()])
    assert_untouched(plan_path, plan_bytes)


def test_two_writers_do_not_mix(plan_path: Path, plan_bytes: bytes) -> None:
    second = PlanWriter(plan_path, CONTENT)
    with (
        Plan.open(plan_path) as plan,
        PlanWriter.extend(plan),
        pytest.raises(DisaError, match="is being written by another process"),
    ):
        second.__enter__()
    assert_untouched(plan_path, plan_bytes)


def test_unwritable_places_are_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, message in [
        (tmp_path, "is a folder: give the name of a file"),
        (tmp_path / "file" / "a.plan", "cannot be written: "),
        (Path("/proc/disa/a.plan"), "cannot be written: No such file or directory"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
    ]:
        entered = False
        with pytest.raises(DisaError, match=message), PlanWriter(path, CONTENT):
            entered = True
        assert not entered


def test_a_source_that_vanishes_or_changes_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "head.data"

    def write(change: Callable[[], None]) -> None:
        with PlanWriter(tmp_path / "a.plan", CONTENT) as writer:
            writer.add("data", source)
            change()

    for change, message in [
        (source.unlink, r"a\.plan cannot be written: No such file .*head\.data"),
        (lambda: os.truncate(source, 10), "data changed its size while it was copied"),
    ]:
        source.write_bytes(bytes(100))
        monkeypatch.setattr("disa.engines.plan.writer._source_size", lambda _: 100)
        with pytest.raises(DisaError, match=message):
            write(change)
        assert not (tmp_path / "a.plan").exists()


def test_a_manifest_that_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DisaError, match=r"a\.plan cannot be written: the manifest lacks model"),
        PlanWriter(tmp_path / "a.plan", {"family": "mar", "name": "a", "precision": "fp32"}),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_link_to_a_plan_stays_a_link(tmp_path: Path, plan_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target = plan_path.rename(tmp_path / "far" / "tiny.plan")
    plan_path.symlink_to(target)
    with PlanWriter(plan_path, CONTENT) as writer:
        writer.add("a", b"new")
    assert plan_path.is_symlink()
    with Plan.open(target) as plan:
        assert plan.read("a") == b"new"


def test_a_plan_may_be_read_by_all_who_may_read_the_folder(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = write_plan(tmp_path / "a.plan", [head()])
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_full_disk_says_how_much_is_missing(
    plan_path: Path, plan_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The free space is what is left without the unfinished file."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr("disa.engines.plan.writer.ArchiveWriter.finish", fail)
    for free, told in ((5_000_000, ": 3 MB more are needed"), (1 << 40, "; free some")):
        monkeypatch.setattr("disa.engines.plan.writer.check_room", lambda path, needed: None)
        monkeypatch.setattr("disa.engines.plan.writer.free_bytes", lambda path, free=free: free)
        with pytest.raises(DisaError, match=told), PlanWriter(plan_path, CONTENT) as writer:
            writer.add("a", bytes(8_000_000))
        assert_untouched(plan_path, plan_bytes)
    monkeypatch.setattr("disa.engines.plan.writer.free_bytes", fail)
    with pytest.raises(DisaError, match="; free some"), PlanWriter(plan_path, CONTENT) as writer:
        writer.add("a", bytes(8_000_000))


def test_too_little_room_is_told_before_anything_is_written(
    plan_path: Path, plan_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(
        "disa.engines.plan.writer.check_room", lambda path, count: needed.append(count)
    )
    with PlanWriter(plan_path, CONTENT) as writer:
        writer.add("a", bytes(5000))
    with Plan.open(plan_path) as plan:
        assert needed == [len(plan.read("manifest.json")) + 5000]


def test_a_failure_after_all_is_written(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the unfinished file has the plan's name already, and is not missed."""

    def fail(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("disa.engines.plan.writer._sync_folder", fail)
    told = "cannot be written: Input/output error"
    with pytest.raises(DisaError, match=told), PlanWriter(plan_path, CONTENT) as writer:
        writer.add("a", b"1")


def test_an_exception_is_told_though_the_unfinished_file_is_gone(plan_path: Path) -> None:
    def interrupted() -> None:
        with PlanWriter(plan_path, CONTENT):
            plan_path.with_name(f".{plan_path.name}.partial").unlink()
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        interrupted()


def test_a_removed_engine_is_gone(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan, PlanWriter.extend(plan) as writer:
        writer.add_engine(HEAD_ENGINE, b"engine")
        writer.remove_engine(HEAD_ENGINE)
    with Plan.open(plan_path) as plan:
        assert plan.manifest.engines == ()
        assert "engines/head.engine" not in plan.manifest.members
