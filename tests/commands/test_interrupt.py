"""Ctrl-C, pressed once or repeatedly, at any time."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = "from disa.commands.start import run; run()"


TWO_INTERRUPTS = """
import signal
from disa.commands.interrupt import Interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)
interrupts = Interrupts()
with interrupts.handled():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("the first")
    signal.raise_signal(signal.SIGINT)
    assert interrupts.recently()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def test_a_second_interrupt_does_not_disturb_the_first() -> None:
    # In a process of its own: one that escapes would end the test runner's.
    code = TWO_INTERRUPTS.replace("Interrupts()", "Interrupts(patience=600)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the first\n", "")


def test_an_interrupt_long_after_the_first_is_one_again() -> None:
    code = TWO_INTERRUPTS.replace("Interrupts()", "Interrupts(patience=0)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "the first\n"
    assert "KeyboardInterrupt" in done.stderr


HIDDEN_INTERRUPT = """
import signal
import click
from disa.commands.command import DisaCommand

signal.signal(signal.SIGINT, signal.default_int_handler)

@click.command(cls=DisaCommand)
def command():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("numpy could not be loaded") from None

command()
"""


def test_an_interrupt_that_a_library_turns_into_an_error_of_its_own() -> None:
    code = [sys.executable, "-c", HIDDEN_INTERRUPT]
    done = subprocess.run(code, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_while_libraries_are_imported(times: int, tmp_path: Path) -> None:
    code = "import disa.commands.start, os; os.write(1, b'x'); " + RUN
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "none.plan"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    # The handler is there as soon as the command begins to be imported.
    time.sleep(0.3)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=60)
    assert errors.decode().startswith("disa-run: ")
    assert b"Traceback" not in errors
    assert process.returncode in (1, 130)
