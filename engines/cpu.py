"""Properties of the processor."""

import os
import platform
from pathlib import Path

from ..errors import InvalidRequest

MIN_THREAD_LIMIT = 64
"""Thread counts up to this are allowed on every machine."""
_EXTENSIONS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 BF16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}
"""Flags of the extensions for matrices and their names, the fastest first."""
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """The number of cores that this process may use; threads of one core are counted once."""
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


def check_threads(threads: int | None) -> None:
    """Check a thread count against the number that can be useful; each thread costs memory.

    Raises:
        InvalidRequest: the count is too high.
    """
    most = max(MIN_THREAD_LIMIT, 4 * (os.cpu_count() or 1))
    if threads is not None and not 1 <= threads <= most:
        raise InvalidRequest(
            f"threads must be from 1 to {most} on this machine, not {threads}; the default is "
            f"{physical_cores()}, the number of its cores"
        )


def _quota() -> int | None:
    """The number of cores that the container's control group allows, if it sets a limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, int(limit) // int(period))
    except (OSError, ValueError):
        return None


def fast_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 matmuls."""
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(_flags())


def exact_int8() -> bool:
    """Whether the processor adds int8 products in 32 bits.

    x86 processors without VNNI add two of them in 16 bits first, which saturates.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(_flags())


def matrix_extension() -> str | None:
    """The processor's fastest extension for matrices; None where it is not known."""
    flags = _flags()
    return next((name for flag, name in _EXTENSIONS.items() if flag in flags), None)


def _flags() -> list[str]:
    """Names of the processor's extensions; none where they cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line for line in lines if line.startswith("flags")), "").split()
