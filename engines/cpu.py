"""What the processor offers."""

import os
from pathlib import Path

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """The number of cores this process may run on, threads of one core counted once."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    cores = set()
    for number in allowed:
        try:
            cores.add(Path(_TOPOLOGY.format(number)).read_text(encoding="ascii"))
        except OSError:
            cores.add(str(number))
    quota = _quota()
    return max(1, min(len(cores), quota) if quota else len(cores))


def _quota() -> int | None:
    """The cores that the container's control group grants, if it sets a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return None


def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 matrices natively."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags
