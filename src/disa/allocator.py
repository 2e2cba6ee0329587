"""Settings of the C library's memory allocator."""

import ctypes
import os

MMAP_THRESHOLD = 128 * 1024
"""Bytes; glibc's own initial value."""
_M_MMAP_THRESHOLD = -3
_CHOSEN_BY_USER = ("MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def fix_mmap_threshold() -> bool:
    """Return every freed block of more than `MMAP_THRESHOLD` bytes to the system at once.

    glibc does so at first, but raises the threshold to the largest block freed so far, up to 32 MB
    (mallopt(3), "dynamic mmap threshold"). Blocks below it lie in heaps, which activations of
    changing shapes fragment: a process that runs for weeks grows.

    Returns:
        Whether it is fixed now: not where the environment has its own value, or without glibc.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD))
