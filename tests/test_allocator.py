import os
import subprocess
import sys

COUNT_MAPPED_BLOCKS = """
import ctypes, sys
from disa.allocator import fix_mmap_threshold

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.malloc.argtypes = [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
library.mallinfo2.restype = Mallinfo2
fixed = fix_mmap_threshold() if sys.argv[1] == "fix" else False
library.free(library.malloc(16 << 20))
before = library.mallinfo2().hblks
library.malloc(4 << 20)
print(fixed, library.mallinfo2().hblks - before)
"""


def count(argument: str, **environment: str) -> list[str]:
    inherited = {name: text for name, text in os.environ.items() if "MALLOC" not in name}
    command = [sys.executable, "-c", COUNT_MAPPED_BLOCKS, argument]
    result = subprocess.run(
        command, env=inherited | environment, check=True, capture_output=True, text=True
    )
    return result.stdout.split()


def test_large_blocks_are_mapped_also_after_larger_ones() -> None:
    assert count("leave") == ["False", "0"]
    assert count("fix") == ["True", "1"]


def test_the_value_of_the_environment_is_kept() -> None:
    assert count("fix", MALLOC_MMAP_THRESHOLD_="33554432")[0] == "False"
