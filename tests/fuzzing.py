"""Mutated files for the fuzz tests.

FUZZ_MUTATIONS is how many mutations each test tries; `make fuzz` tries many, with another seed each
time. FUZZ_SEED repeats a run: without it the seed is the date, so that other mutations are tried
every day, but a run can be repeated. A test that fails prints it.
"""

import os
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from disa.errors import DisaError

MUTATIONS = int(os.environ.get("FUZZ_MUTATIONS", "150"))
SEED = int(os.environ.get("FUZZ_SEED", f"{datetime.now(UTC):%Y%m%d}"))
SECONDS = 5.0
MEMORY = 512 << 20

EXTREMES = [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1]
TOKENS = [
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 400,
        b"null",
        b"[]",
        b"{}",
        b"true",
        b"-1",
        b"\\u0000",
    ),
    *(b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b"\x00", b"\xe2\x80\xae", b"[" * 2000, b'"'),
]
Mutation = Callable[[random.Random, bytearray], None]


def flip_bits(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 2, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data)) :]


def cut_out(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 16, 4096])]


def insert(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    data[start:start] = rng.randbytes(rng.choice([1, 16, 4096]))


def repeat(rng: random.Random, data: bytearray) -> None:
    start, size = rng.randrange(len(data)), rng.choice([1, 16, 512])
    data[start:start] = data[start : start + size] * rng.choice([1, 2, 64])


def put_number(rng: random.Random, data: bytearray) -> None:
    """An extreme number, most often where a zip file has its directory."""
    form = rng.choice(["<H", "<I", "<Q"])
    number = struct.pack(form, rng.choice(EXTREMES) % (1 << 8 * struct.calcsize(form)))
    start = rng.randrange(len(data))
    if rng.random() < 0.5:
        start = max(len(data) - rng.randrange(8, 600), 0)
    data[start : start + len(number)] = number


def put_token(rng: random.Random, data: bytearray) -> None:
    """Something that text and JSON readers stumble over."""
    start, token = rng.randrange(len(data)), rng.choice(TOKENS)
    data[start : start + rng.choice([0, len(token)])] = token


def change_digit(rng: random.Random, data: bytearray) -> None:
    """Another number where there is one."""
    digits = [index for index, byte in enumerate(data[: 1 << 16]) if 48 <= byte < 58]
    if digits:
        start = rng.choice(digits)
        data[start : start + 1] = rng.choice([b"0", b"-1", b"1.5", b"4294967296", b"9" * 30])


BINARY: list[Mutation] = [flip_bits, truncate, cut_out, insert, repeat, put_number, put_number]
TEXT: list[Mutation] = [flip_bits, cut_out, repeat, put_token, put_token, change_digit, truncate]


def seeded(what: str) -> random.Random:
    """The random numbers of a test. Prints how to repeat the run.

    Args:
        what: makes the numbers of one test others than those of the next.
    """
    print(f"FUZZ_SEED={SEED} FUZZ_MUTATIONS={MUTATIONS} ({what})")
    return random.Random(f"{SEED} {what}")


def mutants(data: bytes | Sequence[bytes], kinds: list[Mutation], what: str) -> Iterator[bytes]:
    """Mutated copies of `data`, or of several, MUTATIONS of them; see `seeded` for `what`."""
    rng = seeded(what)
    for _ in range(MUTATIONS):
        mutant = bytearray(data if isinstance(data, bytes) else rng.choice(data))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            if mutant:
                rng.choice(kinds)(rng, mutant)
        yield bytes(mutant)


def survives(read: Callable[[], object], refusal: type[Exception] = DisaError) -> bool:
    """Whether a reader took its input; it must do so, or refuse it in one plain sentence, in time.

    What is no `refusal` is raised.
    """
    begin = time.process_time()
    try:
        read()
        taken = True
    except refusal as error:
        assert str(error).strip(), "an error must say something"  # noqa: PT017
        assert "\n" not in str(error), f"not one line: {error}"  # noqa: PT017
        taken = False
    assert time.process_time() - begin < SECONDS, "it took too long"
    return taken


def check_reader(
    samples: Sequence[bytes],
    read: Callable[[bytes], object],
    what: str,
    refusal: type[Exception] = DisaError,
) -> int:
    """How many mutated copies of the samples a reader refused; see `survives`."""
    return sum(
        not survives(partial(read, mutant), refusal)
        for mutant in mutants(samples, [*BINARY, *TEXT], what)
    )


@contextmanager
def frugal() -> Iterator[None]:
    """Fails if the memory of this process rises by more than MEMORY at any time."""
    with suppress(OSError):
        # Begins a new measurement of the peak, see proc(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _peak()
    yield
    assert _peak() - before < MEMORY, "it took too much memory"


def _peak() -> int:
    """The most memory that this process had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text(encoding="ascii").split()
        return int(words[words.index("VmHWM:") + 1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
