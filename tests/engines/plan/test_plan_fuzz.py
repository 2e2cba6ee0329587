"""Thousands of damaged and forged plans: each is taken whole or refused in one sentence."""

import contextlib
import json
import random
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from disa.engines.plan.archive import ArchiveWriter
from disa.engines.plan.onnx_file import Extent, detach, relocate
from disa.engines.plan.plan import Plan
from disa.errors import DisaError

from ...fuzzing import BINARY, MUTATIONS, seeded
from ..tiny_graphs import head

MEMORY = 64 << 20
SECONDS = 2.0


def sound_or_refused(path: Path) -> bool:
    """Whether a plan was opened; if so, all of it can be read. Raises what is not a DisaError."""
    try:
        plan = Plan.open(path)
    except DisaError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        return False
    with plan:
        for name, member in plan.manifest.members.items():
            assert len(plan.read(name)) == member.size
        try:
            plan.check()
        except DisaError:
            return False
    return True


@pytest.fixture
def frugal() -> Any:
    """Fails a test that takes much memory."""
    before = peak_memory()
    yield
    assert peak_memory() - before < MEMORY


def peak_memory() -> int:
    """The most memory, in bytes, that this process had since the last call."""
    status = Path("/proc/self/status").read_text(encoding="ascii").split()
    peak = int(status[status.index("VmHWM:") + 1]) << 10
    with suppress(OSError):
        # Begins a new measurement, see proc(5).
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak


@pytest.mark.usefixtures("frugal")
def test_mutated_files(tmp_path: Path, plan_bytes: bytes) -> None:
    rng = seeded("plan files")
    path = tmp_path / "mutant.plan"
    opened = 0
    for _ in range(MUTATIONS):
        data = bytearray(plan_bytes)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if data:
                rng.choice(BINARY)(rng, data)
        path.write_bytes(data)
        begin = time.process_time()
        sound = sound_or_refused(path)
        assert time.process_time() - begin < SECONDS
        assert not sound or bytes(data) == plan_bytes
        opened += sound
    assert opened <= 1 + MUTATIONS / 10


def positions(item: Any) -> list[tuple[Any, Any]]:
    """Every container in a piece of JSON with every key or index of it."""
    found: list[tuple[Any, Any]] = []
    inside = item.items() if isinstance(item, dict) else enumerate(item)
    for key, value in inside:
        found.append((item, key))
        if isinstance(value, dict | list):
            found += positions(value)
    return found


def forge(rng: random.Random, manifest: dict[str, Any]) -> None:
    """Replace, remove or move something in a manifest."""
    container, key = rng.choice(positions(manifest))
    other, other_key = rng.choice(positions(manifest))
    kind = rng.randrange(6)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = deepcopy(other[other_key])
    elif kind == 2:
        container[key] = [container[key]] * rng.choice([0, 2, 500])
    elif kind == 3:
        container[key] = rng.choice([None, True, -1, 0.5, "", "../x", "a" * 9999, {}, [[]], "\0"])
    elif kind == 4:
        container[key] = rng.choice([2**31, 2**53 + 1, 10**400, float("nan"), float("inf"), -0.0])
    else:
        container[key] = rng.choice(["graphs/none.data", "manifest.json", "/etc/passwd", "\ud800"])


@pytest.mark.usefixtures("frugal")
def test_forged_manifests(tmp_path: Path, plan_path: Path) -> None:
    """Manifests that say something else, in archives that are in order."""
    rng = seeded("plan manifests")
    with Plan.open(plan_path) as plan:
        members = {name: bytes(plan.read(name)) for name in plan.manifest.members}
        manifest = bytes(plan.read("manifest.json"))
    path = tmp_path / "forged.plan"
    for _ in range(MUTATIONS):
        forged = json.loads(manifest)
        for _ in range(rng.choice([1, 1, 2])):
            forge(rng, forged)
        data = json.dumps(forged).encode()
        with open(path, "w+b") as file:
            archive = ArchiveWriter(file)
            for name, content in {"manifest.json": data, **members}.items():
                archive.add(name, len(content), [content])
            archive.finish()
        begin = time.process_time()
        sound_or_refused(path)
        assert time.process_time() - begin < SECONDS


@pytest.mark.usefixtures("frugal")
def test_mutated_onnx_files() -> None:
    """Whatever the ONNX file says, nothing but the graph's own weights is ever named."""
    rng = seeded("plan graphs")
    for _ in range(MUTATIONS):
        data = bytearray(head().onnx)
        for _ in range(rng.choice([1, 1, 2, 5])):
            if data:
                rng.choice(BINARY)(rng, data)
        try:
            relocated = relocate(
                memoryview(bytes(data)), {"head.data": Extent(4096, len(head().data))}, "tiny.plan"
            )
        except DisaError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            # Each tensor with weights elsewhere is told a longer place.
            assert len(relocated) < 8 * len(data) + 200
        with contextlib.suppress(DisaError):
            _, weights = detach(memoryview(bytes(data)), {"head.data": memoryview(head().data)}, 1)
            most = 2 * (len(head().data) + len(data))
            assert sum(len(weight.data) for weight in weights) <= most
