"""How failures of any kind end a command."""

import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from disa.commands.command import DisaCommand
from disa.errors import DisaError

RUN = "from disa.commands.start import run; run()"


def command_that_raises(error: BaseException) -> click.Command:
    @click.command(cls=DisaCommand)
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (DisaError("it is bad"), 1, "it is bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "not enough memory"),
        (RuntimeError("std::bad_alloc"), 1, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "not enough memory"),
        (FileNotFoundError(2, "No such file", "x"), 1, "No such file: x"),
    ],
)
def test_a_sentence_for_every_failure(error: BaseException, code: int, told: str) -> None:
    result = CliRunner().invoke(command_that_raises(error), [])
    assert result.exit_code == code
    assert told in result.output
    assert "Traceback" not in result.output


def test_a_fault_of_our_own_is_not_hidden() -> None:
    result = CliRunner().invoke(command_that_raises(ZeroDivisionError("x")), [])
    assert isinstance(result.exception, ZeroDivisionError)


def test_no_warning_stands_before_a_sentence() -> None:
    @click.command(cls=DisaCommand)
    def command() -> None:
        np.float32(3e38) * np.float32(3e38)
        warnings.warn("something", UserWarning, stacklevel=1)
        raise DisaError("the sentence")

    result = CliRunner().invoke(command, [])
    assert result.output.strip().splitlines() == ["command: the sentence"]


def test_too_little_memory_is_not_a_missing_package(pixel_plan: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (200 << 20, 200 << 20))

    done = subprocess.run(
        [sys.executable, "-c", RUN, pixel_plan, "-o", tmp_path, "--engine", "cpu"],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "memory" in done.stderr
    assert "not installed" not in done.stderr
    assert "Traceback" not in done.stderr
