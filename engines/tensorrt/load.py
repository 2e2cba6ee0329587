"""Loads the engines of a plan."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import DisaError
from ..gpu.array import Stream
from ..gpu.device import Device
from ..gpu.profile import dimension_ranges
from ..gpu.shared import SHARED_GPU, SharedGpu
from ..plan.engine_info import EngineInfo
from ..plan.plan import Plan
from ..plan.traits import HOST_ONLY
from . import cache, flavour
from .check import EngineMismatch, check_device, check_flavour, deserialize, rebuild_command
from .flavour import Flavour
from .session import Engine, TensorRTSession


class Host:
    """What this machine offers to run engines; tests replace it."""

    def __init__(
        self,
        find: Callable[[str], Flavour | str] = flavour.find,
        gpu: SharedGpu = SHARED_GPU,
    ) -> None:
        self._find, self._gpu = find, gpu
        self._flavours: dict[str, Flavour | str] = {}
        self._runtimes: dict[str, Any] = {}

    def find(self, backend: str) -> Flavour | str:
        """The flavour with that name, or why it cannot be used."""
        if backend not in self._flavours:
            self._flavours[backend] = self._find(backend)
        return self._flavours[backend]

    @property
    def device(self) -> Device | None:
        """The GPU, or None."""
        return self._gpu.device

    @property
    def stream(self) -> Stream:
        """The stream that all sessions of this process share."""
        return self._gpu.stream

    def runtime(self, found: Flavour) -> Any:
        """TensorRT's runtime, which must live as long as its engines."""
        if found.name not in self._runtimes:
            self._runtimes[found.name] = found.start("Runtime")
        return self._runtimes[found.name]


HOST = Host()


def usable_backend(plan: Plan, host: Host = HOST) -> str | None:
    """The backend whose engines can run here, one for every graph that a GPU runs, or None."""
    for backend in flavour.MODULES:
        if not unusable(plan, backend, host):
            return backend
    return None


def unusable(plan: Plan, backend: str, host: Host = HOST) -> str:
    """Why the engines of a backend cannot be used here; empty if they can."""
    for name, graph in plan.manifest.graphs.items():
        if graph.traits.role in HOST_ONLY:
            continue
        try:
            _choose(plan, name, backend, host)
        except DisaError as error:
            return str(error)
    return ""


def open_engine(
    plan: Plan, graph: str, backend: str, host: Host = HOST, specialisation: str = "lazy"
) -> TensorRTSession:
    """Open the session of a graph.

    Args:
        specialisation: when TensorRT-RTX compiles kernels for exact shapes: "lazy" in the
            background, "eager" before a shape runs for the first time, "none" never, which uses
            the same kernel for every shape.

    Raises:
        EngineMismatch: no engine can run here; the message says what the plan has, what this
            machine has, and what to do.
        DisaError: the engine is damaged.
    """
    chosen, found, device = _choose(plan, graph, backend, host)
    # A damaged engine may crash the library that loads it.
    plan.check_member(chosen.member)
    loaded = deserialize(plan, chosen, found, device, host.runtime(found))
    kept = None
    if found.finishes_kernels_at_run_time:
        key = plan.manifest.members[chosen.member].sha256
        kept = RuntimeCache(cache.runtime_cache(found.name, found.version, device.name, key))
    info = plan.graph(graph)
    return TensorRTSession(
        graph,
        Engine(found, loaded, host.stream, kept, specialisation),
        info.inputs,
        info.outputs,
        dimension_ranges(info.inputs, chosen.profiles[0]),
        info.traits.split,
        f"{found} {plan.manifest.precision_of(graph)} on {device.name}",
    )


def _choose(plan: Plan, graph: str, backend: str, host: Host) -> tuple[EngineInfo, Flavour, Device]:
    """The newest engine of a graph that can run here.

    Raises:
        EngineMismatch: none can; the error is that of the newest engine.
    """
    failures: list[EngineMismatch] = []
    # Engines are added at the end, and those for some more GPUs than the new one stay.
    for engine in reversed(plan.manifest.engines):
        if (engine.graph, engine.backend) == (graph, backend):
            try:
                found = check_flavour(plan, engine, host.find(backend))
                return engine, found, check_device(plan, engine, host.device)
            except EngineMismatch as mismatch:
                failures.append(mismatch)
    if failures:
        raise failures[0]
    missing = EngineInfo(graph, backend, "", "", (), (), "")
    sm = host.device.sm if host.device else None
    raise EngineMismatch(
        f"{plan.path} has no engine of {backend} for the graph {graph}: "
        f"run `{rebuild_command(plan, missing, sm)}`"
    )


class RuntimeCache:
    """Kernels that TensorRT-RTX compiled on this machine, cached for the next run.

    A file that is missing or does not match only makes the start slower.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None

    def attach(self, config: Any) -> None:
        """Let contexts of this runtime configuration use the cache."""
        if self._handle is None:
            self._handle = config.create_runtime_cache()
            kept = b""
            try:
                kept = self.path.read_bytes()
                self._handle.deserialize(kept)
            except OSError:
                pass
            weakref.finalize(self, _save, self._handle, self.path, kept)
        config.set_runtime_cache(self._handle)


def _save(handle: Any, path: Path, kept: bytes) -> None:
    data = bytes(handle.serialize() or b"")
    if data and data != kept:
        cache.save(path, data)
