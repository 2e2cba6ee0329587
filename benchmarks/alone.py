"""Runs a function in a process of its own, so that its memory is its own and is given back."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from disa.errors import DisaError
from disa.runtime.bench_machine import peak_memory

T = TypeVar("T")


@dataclass(frozen=True)
class Alone(Generic[T]):
    """What a function gave, and what it cost.

    Attributes:
        seconds: wall time of the call, without the start of the process.
        cpu_seconds: of all its threads.
        peak_memory: the most that the process had resident at once in bytes, mapped files
            included; None where the system does not tell.
        own_memory: what of it remained at the end of the call and is in no file, in bytes.
    """

    result: T
    seconds: float
    cpu_seconds: float
    peak_memory: int | None
    own_memory: int | None


def run_alone(function: Callable[..., T], *arguments: Any) -> Alone[T]:
    """Call a module's function in a new process.

    Raises DisaError if the process is killed, which is what happens when memory runs out; what
    the function raises is raised here.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measured, function, *arguments).result()
        except BrokenProcessPool:
            raise DisaError(
                f"the process of {function.__name__} was killed: memory may have run out"
            ) from None


def _measured(function: Callable[..., T], *arguments: Any) -> Alone[T]:
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return Alone(result, seconds, cpu_seconds, peak_memory(), own_memory())


def own_memory() -> int | None:
    """Resident memory of this process that no file backs, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("RssAnon")), None)
    return int(found.split()[1]) * 1024 if found else None
