import os
import signal

import numpy as np
import pytest

from benchmarks.process import run_in_process
from disa.errors import DisaError

MIB = 1 << 20


def use_memory(megabytes: int) -> int:
    np.ones(megabytes * MIB // 8)
    return os.getpid()


def fail() -> None:
    raise DisaError("no such thing")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_memory_is_that_of_the_function() -> None:
    small, large = run_in_process(use_memory, 1), run_in_process(use_memory, 300)
    assert os.getpid() != small.result != large.result
    assert (large.peak_memory or 0) - (small.peak_memory or 0) > 250 * MIB
    assert abs((large.own_memory or 0) - (small.own_memory or 0)) < 100 * MIB
    assert small.own_memory
    assert large.seconds > 0 < large.cpu_seconds


def test_errors_come_through() -> None:
    with pytest.raises(DisaError, match="no such thing"):
        run_in_process(fail)


def test_a_killed_process_is_an_error() -> None:
    with pytest.raises(DisaError, match="process of die was killed"):
        run_in_process(die)
