from pathlib import Path

import pytest

from disa.engines import cpu


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the system's files say; one that is not here is missing."""
    found: dict[str, str] = {}

    def read(path: Path, encoding: str) -> str:
        if str(path) not in found:
            raise FileNotFoundError(path)
        return found[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    return found


def test_threads_of_a_core_count_once(files: dict[str, str]) -> None:
    for number, siblings in {0: "0-1", 1: "0-1", 2: "2-3", 5: "4-5"}.items():
        files[f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"] = siblings
    assert cpu.physical_cores() == 3


def test_without_topology_every_processor_is_a_core(files: dict[str, str]) -> None:
    assert cpu.physical_cores() == 4


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 4), ("200000 100000", 2), ("50000 100000", 1), ("900000 100000", 4)],
)
def test_a_containers_limit_counts(files: dict[str, str], limit: str, cores: int) -> None:
    files["/sys/fs/cgroup/cpu.max"] = limit
    assert cpu.physical_cores() == cores


@pytest.mark.parametrize(
    ("flags", "fast"),
    [("fpu amx_bf16 sse", True), ("avx512_bf16", True), ("avx512f bf16", False), ("", False)],
)
def test_fast_bfloat16(files: dict[str, str], flags: str, fast: bool) -> None:
    files["/proc/cpuinfo"] = f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: amx_bf16\n"
    assert cpu.fast_bfloat16() == fast


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("avx2 avx512f avx512_bf16 amx_bf16", "AMX"),
        ("avx2 avx512f avx512_bf16", "AVX-512 BF16"),
        ("avx512f avx2", "AVX-512"),
        ("sse avx2", "AVX2"),
        ("sse", None),
    ],
)
def test_the_fastest_extension_counts(files: dict[str, str], flags: str, name: str) -> None:
    files["/proc/cpuinfo"] = f"processor\t: 0\nflags\t\t: {flags}\n"
    assert cpu.matrix_extension() == name


@pytest.mark.parametrize(
    ("machine", "flags", "exact"),
    [
        ("x86_64", "avx2", False),
        ("AMD64", "avx512f", False),
        ("x86_64", "avx2 avx_vnni", True),
        ("x86_64", "avx512_vnni", True),
        ("aarch64", "", True),
    ],
)
def test_exact_int8(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, exact: bool
) -> None:
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    files["/proc/cpuinfo"] = f"flags\t\t: {flags}\n"
    assert cpu.exact_int8() == exact


def test_an_unknown_system_has_no_fast_bfloat16(files: dict[str, str]) -> None:
    assert not cpu.fast_bfloat16()
