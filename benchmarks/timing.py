"""Clocks, and the least time of several tries."""

import time
from collections.abc import Callable, Mapping

Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What may be counted in seconds; `cpu` is the time of all threads of this process."""


def least(work: Callable[[], object], clock: Clock, tries: int) -> float:
    """The shortest time of several in seconds, after one that does not count."""
    work()
    times = []
    for _ in range(tries):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)
