"""A memory limit for graphs that ONNX Runtime runs on the host.

A graph can allocate arrays of any size, also while it is loaded, when ONNX Runtime computes its
constant parts. Without a limit an untrusted graph could use up the machine's memory, and the system
would end other processes first.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from ...errors import InvalidRequest

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

VARIABLE = "DISA_MEMORY_LIMIT_MIB"
SHARE = 0.8
"""Share of the memory of the machine, or of the control group."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")
_MIB = 1 << 20
_lock = Lock()
"""For what the whole process has once: its arena, and its limit while graphs are loaded."""
_limits: list[tuple[int, int]] = []
"""For each graph that is being loaded, the limit before the first of them."""


def memory_limit() -> int:
    """Bytes that the arrays of all graphs of this process may use together.

    This is the environment variable DISA_MEMORY_LIMIT_MIB, or 80 % of the memory of the machine or
    of this process's control group.

    Raises:
        InvalidRequest: the variable is not a valid number.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return int(_memory() * SHARE)
    if not (given.isascii() and given.isdigit() and 0 < len(given) < 10 and int(given)):
        raise InvalidRequest(
            f"{VARIABLE} must be a whole number of MiB, at least 1, not {given[:20]!r}"
        )
    return int(given) * _MIB


def limit_arrays(runtime: Any, options: Any) -> None:
    """Let sessions with these options share one host arena of limited size."""
    with _lock:
        _share_arena(runtime, memory_limit())
    options.add_session_config_entry("session.use_env_allocators", "1")


@contextmanager
def limited_loading() -> Iterator[None]:
    """Limit the additional memory of this process inside the block, if the system supports it.

    The arena does not limit what ONNX Runtime computes while it loads a graph. Threads that load
    graphs at the same time share one limit.
    """
    if resource is None:
        yield
        return
    with _lock:
        _limits.append(_limits[0] if _limits else _set_limit())
    try:
        yield
    finally:
        with _lock:
            before = _limits.pop()
            if not _limits:
                resource.setrlimit(resource.RLIMIT_DATA, before)


def _set_limit() -> tuple[int, int]:
    """Limit the additional memory; returns the limit before."""
    before: tuple[int, int] = resource.getrlimit(resource.RLIMIT_DATA)
    finite = [limit for limit in before if limit != resource.RLIM_INFINITY]
    most = min([_data_bytes() + memory_limit(), *finite])
    resource.setrlimit(resource.RLIMIT_DATA, (most, before[1]))
    return before


@cache
def _share_arena(runtime: Any, limit: int) -> None:
    """Create the arena of the process, once: ONNX Runtime uses the first one for all sessions."""
    where = runtime.OrtMemoryInfo(
        "Cpu", runtime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, runtime.OrtMemType.DEFAULT
    )
    # -1 leaves the choice to ONNX Runtime.
    settings = {
        "max_mem": limit,
        "arena_extend_strategy": -1,
        "initial_chunk_size_bytes": -1,
        "max_dead_bytes_per_chunk": -1,
    }
    runtime.create_and_register_allocator(where, runtime.OrtArenaCfg(settings))


def _memory() -> int:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(_CGROUP.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return whole


def _data_bytes() -> int:
    """Bytes that count against RLIMIT_DATA now; see proc(5)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii").split()
        return int(status[status.index("VmData:") + 1]) << 10
    except (OSError, ValueError):
        return _memory()
