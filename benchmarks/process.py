"""Runs a function in its own process, so that its memory is measured separately and freed."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from disa.bench.machine import own_memory, peak_memory
from disa.errors import DisaError

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessResult(Generic[T]):
    """The result of a function, and its cost.

    Attributes:
        result: the result.
        seconds: wall time of the call, without the start of the process.
        cpu_seconds: CPU time of all threads.
        peak_memory: peak resident memory of the process in bytes, mapped files included; None if
            unknown.
        own_memory: resident memory at the end in bytes, without mapped files; None if unknown.
    """

    result: T
    seconds: float
    cpu_seconds: float
    peak_memory: int | None
    own_memory: int | None


def run_in_process(function: Callable[..., T], *arguments: Any) -> ProcessResult[T]:
    """Call a module's function in a new process.

    Raises:
        DisaError: the process was killed, which happens when memory runs out. Exceptions of the
            function are raised unchanged.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measured, function, *arguments).result()
        except BrokenProcessPool:
            raise DisaError(
                f"the process of {function.__name__} was killed: memory may have run out"
            ) from None


def _measured(function: Callable[..., T], *arguments: Any) -> ProcessResult[T]:
    start, cpu_start = time.perf_counter(), time.process_time()
    result = function(*arguments)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return ProcessResult(result, seconds, cpu_seconds, peak_memory(), own_memory())
