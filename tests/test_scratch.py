import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from disa import scratch
from disa.engines.plan.writer import PlanWriter
from disa.errors import DisaError
from disa.scratch import scratch_folder

CHILD = """
import sys, time
from pathlib import Path
from disa.scratch import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def start(plan: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, plan], stdout=-1, stderr=-1, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_it_goes_with_what_is_in_it(tmp_path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with scratch_folder(tmp_path / "new" / "a.plan") as folder:
        assert folder.parent == tmp_path / "new"
        (folder / "inner").mkdir()
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert list((tmp_path / "new").iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_terminated_process_leaves_nothing(tmp_path: Path) -> None:
    child = start(tmp_path / "a.plan")
    child.terminate()
    _, stderr = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    dead, alive = start(tmp_path / "a.plan"), start(tmp_path / "b.plan")
    dead.kill()
    dead.communicate(timeout=30)
    (tmp_path / ".disa-mine").mkdir()
    (tmp_path / ".disa-abcdefgh").mkdir()
    assert len(list(tmp_path.glob("*/half"))) == 2
    with scratch_folder(tmp_path / "c.plan"):
        assert len(list(tmp_path.glob("*/half"))) == 1
    # Folders without a lock are somebody else's.
    assert {".disa-mine", ".disa-abcdefgh"} < {path.name for path in tmp_path.iterdir()}
    alive.terminate()
    alive.communicate(timeout=30)
    assert len(list(tmp_path.glob("*/half"))) == 0


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(scratch.fcntl, "flock", unknown)
    with scratch_folder(tmp_path / "a.plan") as first, scratch_folder(tmp_path / "b.plan") as other:
        assert {first, other} == set(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DisaError, match="cannot be written"),
        scratch_folder(tmp_path / "file" / "a"),
    ):
        pass


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space"), RuntimeError("problem writing element 19456 to file")],
)
def test_a_full_disk_is_told_whatever_a_library_says(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [10**9, 0]
    monkeypatch.setattr(scratch, "free_bytes", lambda _folder: free[-1])
    with (
        pytest.raises(DisaError, match=r"no space left for .*m\.plan on the disk at /.*5 KB more"),
        scratch_folder(tmp_path / "m.plan", needed=5000),
    ):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"^x$"), scratch_folder(tmp_path / "m.plan"):
        raise RuntimeError("x")


def test_room_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(DisaError, match=r"no space left .* more are needed"),
        scratch_folder(tmp_path / "m.plan", needed=10**17),
    ):
        pytest.fail("it should not begin")


def test_a_plan_that_does_not_fit(tmp_path: Path) -> None:
    """A sparse file claims more than any disk has."""
    big = tmp_path / "weights.data"
    with big.open("wb") as file:
        os.truncate(file.fileno(), 2**43)
    content = {"family": "x", "name": "x", "precision": "fp32", "model": {}, "tokens": {}}
    with (
        pytest.raises(DisaError, match=r"no space left for .* more are needed"),
        PlanWriter(tmp_path / "x.plan", {**content, "defaults": {}}) as writer,
    ):
        writer.add("graphs/weights.data", big)
    assert not list(tmp_path.glob("*plan*"))
