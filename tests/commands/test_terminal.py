"""What reaches the terminal, whatever the names of files and the streams are."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from disa.commands.terminal import PlainWriter, printable

INSPECT = "from disa.commands.start import inspect; inspect()"
RUN = "from disa.commands.start import run; run()"
QUICK = ("--num", "1", "--steps", "2", "--iterations", "2")


def python(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", code, *map(os.fsencode, map(str, arguments))]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m\x07", "a\\x1b[31m\\x07"),
        ("\x9b2J \u202e", "\\x9b2J \\u202e"),
        ("\udcff", "\\udcff"),
        ("猫 é\t100%\r\n", "猫 é\t100%\r\n"),
    ],
)
def test_no_control_character_is_printed(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("utf-8", "猫 é \\x1b\n".encode()),
        ("cp1252", "\\u732b é \\x1b\n".encode("cp1252")),
        ("ascii", b"\\u732b \\xe9 \\x1b\n"),
    ],
)
def test_any_encoding_takes_any_text(encoding: str, written: bytes) -> None:
    below = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    writer = PlainWriter(below)
    writer.write("猫 é \x1b\n")
    writer.flush()
    assert below.buffer.getvalue().replace(b"\r\n", b"\n") == written  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_run_into_a_folder_with_a_strange_name(
    encoding: str, pixel_plan: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "猫\udcff"
    done = python(RUN, pixel_plan, "-o", folder, *QUICK, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"\\u732b\\udcff" in done.stdout
    assert (folder / "000000.png").exists()


def test_errors_about_strange_names() -> None:
    done = python(INSPECT, "/none/\x1b[31m\udcff.plan")
    assert done.returncode == 1
    assert b"there is no plan at" in done.stderr
    assert b"\x1b" not in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str, pixel_plan: Path, tmp_path: Path) -> None:
    """Nothing that libraries print goes into a file that took the place of a stream."""
    command = f'"$@" {closed}'
    arguments = [sys.executable, "-c", RUN, pixel_plan, "-o", tmp_path / "images", *QUICK]
    done = subprocess.run(
        ["sh", "-c", command, "sh", *map(str, arguments)], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "images" / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("code", "closed"),
    [
        ("import click; [click.echo('x' * 1000) for _ in range(1000)]", ">"),
        ("import click; click.echo('x', err=True)", "2>"),
        ("from disa.errors import DisaError; raise DisaError('x')", "2>"),
        ("import click; click.get_current_context().exit(0)", ">"),
    ],
)
def test_a_reader_that_ends_early_ends_a_command_quietly(code: str, closed: str) -> None:
    command = (
        "import click\n"
        "from disa.commands.command import DisaCommand\n"
        "@click.command(cls=DisaCommand)\n"
        f"def main():\n    exec({code!r})\n"
        "main()"
    )
    read, write = os.pipe()
    os.close(read)
    stream = {">": "stdout", "2>": "stderr"}[closed]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write}
    done = subprocess.run([sys.executable, "-c", command], timeout=120, **streams)  # type: ignore[call-overload]
    os.close(write)
    assert not done.stdout
    assert not done.stderr
    assert done.returncode == (0 if "exit(0)" in code else 141)


def test_help_into_a_reader_that_ends_early() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", INSPECT, "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
