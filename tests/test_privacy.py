"""Nothing is reported to anybody: ONNX Runtime would, from the moment it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A seccomp filter (seccomp(2)) that ends the process at its first socket: without one no name
# is looked up. Numbers of the system calls by machine; struct sock_filter is built by hand.
NO_SOCKETS = """
import ctypes, platform, struct
number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
LOAD_NUMBER, EQUAL, RETURN = 0x20, 0x15, 0x06
KILL_PROCESS, ALLOW = 0x80000000, 0x7FFF0000
program = b"".join(
    struct.pack("HBBI", *line)
    for line in [(LOAD_NUMBER, 0, 0, 0), (EQUAL, 0, 1, number), (RETURN, 0, 0, KILL_PROCESS),
                 (RETURN, 0, 0, ALLOW)]
)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]
prctl = ctypes.CDLL(None, use_errno=True).prctl
prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
filter = Filter(4, program)
assert prctl(38, 1, 0, 0, 0) == 0
assert prctl(22, 2, ctypes.addressof(filter), 0, 0) == 0
"""
GENERATE = """
from disa.commands.run import main
main([PLAN, "--num", "1", "--steps", "2", "--iterations", "2", "-o", FOLDER])
"""
BENCHMARK = """
from disa.commands.bench import main
main([PLAN, "--repeat", "1", "--warmup", "0", "--steps", "2", "--iterations", "2"])
"""


def python(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with an empty home folder and without the variable of this test run."""
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home.mkdir()
    homes = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")}
    environment = {**kept, **homes, "TMPDIR": str(home), **variables}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_run_writes_nothing_of_its_own_and_opens_no_socket(
    pixel_plan: Path, tmp_path: Path
) -> None:
    home, outputs = tmp_path / "home", tmp_path / "outputs"
    names = f"PLAN, FOLDER = {str(pixel_plan)!r}, {str(outputs)!r}\n"
    done = python(names + NO_SOCKETS + GENERATE, home)
    assert done.returncode == 0, done.stderr
    assert files_in(home) == []
    assert (outputs / "000000.png").exists()


def test_worker_processes_report_nothing_either(pixel_plan: Path, tmp_path: Path) -> None:
    """The worker of disa-bench, which is a new Python process."""
    code = f"PLAN = {str(pixel_plan)!r}\nif __name__ == '__main__':\n"
    code += "".join(f"    {line}\n" for line in BENCHMARK.strip().splitlines())
    done = python(code, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "home") == []


@pytest.mark.parametrize(
    "module",
    ["disa.engines.ort.session", "disa.exporter.graphs.check", "benchmarks.official.rates"],
)
def test_whatever_is_imported_first(module: str, tmp_path: Path) -> None:
    code = f"import {module}, onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = python(code, tmp_path / "home")
    assert done.stdout.strip() == "1", done.stderr
    assert files_in(tmp_path / "home") == []


def test_a_user_may_want_it(tmp_path: Path) -> None:
    code = "import disa, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert python(code, tmp_path / "home", ORT_DISABLE_TELEMETRY="0").stdout.strip() == "0"


def test_the_socket_filter_works(tmp_path: Path) -> None:
    """The first test would pass without it, if it did nothing."""
    done = python(NO_SOCKETS + "import socket; socket.socket()", tmp_path / "home")
    assert done.returncode == -31  # SIGSYS
