"""Describes this machine and measures its peak rates."""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..engines.cpu import check_threads, matrix_extension, physical_cores
from ..engines.open import open_session
from ..engines.plan.plan import Plan, PlanWriter
from ..engines.plan.traits import GraphTraits, Role
from ..engines.session import TensorSpec

PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt")
MATRIX_SIZE = 2048
READ_BYTES = 256 << 20
TRIES = 5

# An ONNX file, opset 20: c [rows, columns] = MatMul(a [rows, inner], b [inner, columns]).
MATMUL = bytes.fromhex(
    "080a12003a7b0a110a01610a0162120163"
    "22064d61744d756c120770726f64756374"
    "5a1c0a016112170a15080112110a061204"
    "726f77730a071205696e6e65725a1f0a01"
    "62121a0a18080112140a071205696e6e65"
    "720a091207636f6c756d6e73621e0a0163"
    "12190a17080112130a061204726f77730a"
    "091207636f6c756d6e7342040a001014"
)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, and load of the last minute."""
    return {
        "processor": processor_name(),
        "cores": physical_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
    }


def describe_versions() -> dict[str, str]:
    """Versions of Python, disa and the installed packages."""
    found = {"python": platform.python_version(), "disa": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor_name() -> str:
    """The processor's model name, and its fastest extension for matrices.

    Virtual machines give processors with and without an extension the same name.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(named, "") or platform.processor() or platform.machine()
    extension = matrix_extension()
    return f"{name} ({extension})" if extension else name


def matrix_rate(
    engine: str, threads: int | None, size: int = MATRIX_SIZE, precision: str | None = None
) -> float:
    """Operations per second of a large fp32 matmul on an engine.

    It is measured on the engine itself, so it is the rate in the precision in which the engine
    computes.

    Args:
        threads: CPU threads; None for all cores.
        size: rows and columns of the matrices.
        precision: precision of the computation, see `open_session`.

    Raises:
        DisaError: the engine needs a compiled engine for each graph.
    """
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((size, size), np.float32) for name in ("a", "b")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matmul.plan"
        write_matmul_plan(path)
        with Plan.open(path) as plan:
            session = open_session(plan, "matmul", engine, threads=threads, precision=precision)
            session.run(inputs)
            return 2 * size**3 / best_of(lambda: session.run(inputs))


def write_matmul_plan(path: Path) -> None:
    """Write a plan whose only graph is a matmul."""
    content = {
        "family": "matmul",
        "name": "matmul",
        "precision": "fp32",
        "model": {},
        "tokens": {},
        "image": {},
        "defaults": {},
    }
    left, right = ("rows", "inner"), ("inner", "columns")
    with PlanWriter(path, content) as writer:
        writer.add_graph(
            "matmul",
            MATMUL,
            [],
            [TensorSpec("a", "float32", left), TensorSpec("b", "float32", right)],
            [TensorSpec("c", "float32", ("rows", "columns"))],
            GraphTraits(Role.ONCE),
        )


def read_bandwidth(threads: int | None, size: int = READ_BYTES) -> float:
    """Bytes per second that all threads together read from memory.

    Args:
        threads: CPU threads; None for all cores.
        size: bytes to read.
    """
    check_threads(threads)
    count = threads or physical_cores()
    parts = np.array_split(np.ones(size // 4, np.float32), count)
    with ThreadPoolExecutor(count) as pool:
        return size / best_of(lambda: list(pool.map(np.max, parts)))


def best_of(work: Callable[[], object], tries: int = TRIES) -> float:
    """The shortest duration of several tries, in seconds."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def reset_peak_memory() -> None:
    """Restart the measurement of `peak_memory`, if the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_memory(process: int | str = "self") -> int | None:
    """The peak resident memory of a process in bytes, mapped files included; None if unknown."""
    return _memory_field("VmHWM", process)


def own_memory(process: int | str = "self") -> int | None:
    """The resident memory of a process in bytes, without mapped files; None if unknown."""
    return _memory_field("RssAnon", process)


def _memory_field(name: str, process: int | str) -> int | None:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    line = next((line for line in lines if line.startswith(name)), None)
    return int(line.split()[1]) * 1024 if line else None
