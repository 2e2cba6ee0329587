"""Builds TensorRT engines for the graphs of a plan, and adds them to it."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DisaError, InvalidRequest
from ...progress import progress_bar
from ..gpu import device, profile
from ..plan.engine_info import EngineInfo, Profile
from ..plan.manifest import GraphInfo
from ..plan.onnx_file import relocate
from ..plan.plan import Plan
from ..plan.traits import HOST_ONLY
from ..plan.writer import PlanWriter
from . import builder, cache, flavour

DEFAULT_TARGETS = (80, 86, 89, 120)
"""Architectures to build for without `--gpu` and without a GPU: those TensorRT-RTX supports."""
_KEY_VERSION = 2


@dataclass(frozen=True)
class EngineOptions:
    """Options of building engines."""

    engine: str | None = None
    """"tensorrt", "tensorrt-rtx", or None for the installed one."""
    gpus: tuple[int, ...] = ()
    """Architectures, 89 for sm_89; empty for this machine's GPU, or all if there is none."""
    batch: profile.Range = field(default_factory=lambda: profile.Range(1, 8, 64))
    workspace: int | None = None
    """Limit in bytes of the memory that a kernel may use."""
    optimization_level: int | None = None
    use_cache: bool = True

    @classmethod
    def from_command(
        cls,
        engine: str = "auto",
        gpus: tuple[int, ...] = (),
        batch: profile.Range | None = None,
        workspace: int | None = None,
        optimization_level: int | None = None,
    ) -> "EngineOptions | None":
        """From the values of a command's options; None if no engines are requested."""
        if engine == "onnxruntime":
            return None
        return cls(
            None if engine == "auto" else engine,
            gpus,
            batch or profile.Range(1, 8, 64),
            None if workspace is None else workspace << 20,
            optimization_level,
        )


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the cache, ready to be added to a plan."""

    info: EngineInfo
    path: Path
    size: int
    seconds: float
    """Seconds that the build took, now or earlier."""
    cached: bool


def parse_gpus(text: str) -> tuple[int, ...]:
    """Parse architectures from "sm_89,sm_120"; 89 and 8.9 are accepted too.

    Raises:
        InvalidRequest: the text is none of these.
    """
    targets = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:sm_?)?(\d{2,3}|\d{1,2}\.\d)\s*", part, re.IGNORECASE)
        if not match:
            raise InvalidRequest(f"{part.strip()!r} is not a GPU architecture: write it as sm_89")
        targets.append(int(match[1].replace(".", "")))
    return tuple(sorted(set(targets)))


def engines_by_default() -> bool:
    """Whether engines are built by default: there are a GPU and a TensorRT that supports it."""
    try:
        chosen, gpu = flavour.load(), device.present()
    except DisaError:
        return False
    return gpu is not None and (not chosen.architectures or gpu.sm in chosen.architectures)


def add_engines(
    path: Path, options: EngineOptions, output: Path | None = None
) -> tuple[BuiltEngine, ...]:
    """Build engines for all graphs of the plan at `path` and add them.

    Engines of the same backend for the same architectures are replaced; others stay. The plan is
    written to `output`, or over itself, completely or not at all.
    """
    with Plan.open(path) as plan:
        built = build_engines(plan, options)
        with PlanWriter.extend(plan, output) as writer:
            for old in plan.manifest.engines:
                if any(_replaces(new.info, old) for new in built):
                    writer.remove_engine(old)
            for new in built:
                writer.add_engine(new.info, new.path)
    return built


def check_engines(options: EngineOptions, precision: str) -> None:
    """Check that engines of this precision can be built with these options; takes no time.

    Raises:
        DisaError: they cannot.
    """
    chosen = flavour.load(options.engine, ahead_of_time=bool(options.gpus))
    builder.check_targets(chosen, targets(chosen, options.gpus, precision), precision)


def _replaces(new: EngineInfo, old: EngineInfo) -> bool:
    same = (new.graph, new.backend) == (old.graph, old.backend)
    return same and set(old.architectures) <= set(new.architectures)


def build_engines(plan: Plan, options: EngineOptions) -> tuple[BuiltEngine, ...]:
    """Build engines for a plan's graphs that a GPU runs, or take unchanged ones from the cache.

    Shows a progress bar.

    Raises:
        DisaError: an engine cannot be built; the message gives the reason.
    """
    chosen = flavour.load(options.engine, ahead_of_time=bool(options.gpus))
    job = _Job(plan, options, chosen, targets(chosen, options.gpus, plan.manifest.precision))
    graphs = [g for g in plan.manifest.graphs.values() if g.traits.role not in HOST_ONLY]
    for graph in graphs:
        builder.check_targets(chosen, job.targets, plan.manifest.precision)
        profile.graph_profile(graph.name, graph.inputs, job.ranges)
    built = []
    with progress_bar(100 * len(graphs), f"Building with {chosen}", "%") as advance:
        for graph in graphs:
            built.append(job.build(graph, _Share(advance)))
    return tuple(built)


class _Share:
    """Converts the progress of one graph to steps of the progress bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.shown = advance, 0

    def __call__(self, share: float) -> None:
        percent = int(100 * share)
        if percent > self.shown:
            self.advance(percent - self.shown)
            self.shown = percent


def targets(chosen: flavour.Flavour, gpus: Sequence[int], precision: str) -> tuple[int, ...]:
    """Architectures to build for: the given ones, this machine's GPU, or all with the precision."""
    if chosen.architectures and gpus:
        return tuple(gpus)
    gpu = device.present()
    if chosen.architectures:
        able = tuple(sm for sm in DEFAULT_TARGETS if sm >= flavour.LEAST_SM[precision])
        return (gpu.sm,) if gpu else able
    if gpu is None:
        raise DisaError(
            f"{chosen} needs the GPU that it builds for, but this machine has none: run this on "
            "the machine that will run the plan, or use --engine tensorrt-rtx --gpu sm_89"
        )
    if gpus and set(gpus) != {gpu.sm}:
        raise DisaError(
            f"{chosen} builds only for the GPU in this machine, which is sm_{gpu.sm}: "
            "leave --gpu out, or use --engine tensorrt-rtx"
        )
    return (gpu.sm,)


class _Job:
    """Everything that is equal for all graphs of one build."""

    def __init__(
        self,
        plan: Plan,
        options: EngineOptions,
        chosen: flavour.Flavour,
        targets: tuple[int, ...],
    ) -> None:
        manifest = plan.manifest
        self.plan, self.options, self.flavour, self.targets = plan, options, chosen, targets
        self.precision = manifest.precision
        self.ranges = profile.dimensions(manifest.tokens, manifest.defaults, options.batch)
        self.cache = cache.engine_cache()
        self.device = "" if chosen.architectures else _device_name()
        self._intact: set[str] = set()

    def build(self, graph: GraphInfo, report: Callable[[float], None]) -> BuiltEngine:
        shapes = profile.graph_profile(graph.name, graph.inputs, self.ranges)
        key = cache.cache_key(self._dependencies(graph, shapes))
        found = self.cache.find(key) if self.options.use_cache else None
        if found is not None:
            path, note = found
            report(1.0)
        else:
            path, note = self._build(graph, shapes, key, report)
        architectures = tuple(f"sm_{target}" for target in self.targets)
        info = EngineInfo(
            graph=graph.name,
            backend=self.flavour.name,
            version=self.flavour.version,
            precision=self.precision,
            architectures=architectures,
            profiles=(shapes,),
            member=f"engines/{self.flavour.name}/{'-'.join(architectures)}/{graph.name}.engine",
            details={
                "cuda": self.flavour.cuda,
                "least_sm": min(self.targets),
                "key": key,
                "memory": note["memory"],
                "workspace": self.options.workspace,
                "optimization_level": self.options.optimization_level,
                **({"device": self.device} if self.device else {}),
            },
        )
        return BuiltEngine(info, path, path.stat().st_size, note["seconds"], found is not None)

    def _dependencies(self, graph: GraphInfo, shapes: Profile) -> dict[str, Any]:
        members = self.plan.manifest.members
        return {
            "key": _KEY_VERSION,
            "graph": members[graph.onnx].sha256,
            "weights": [members[name].sha256 for name in graph.data],
            "profile": {n: [s.minimum, s.usual, s.maximum] for n, s in shapes.items()},
            "precision": self.precision,
            "flavour": [self.flavour.name, self.flavour.version, self.flavour.cuda],
            "targets": self.targets,
            "device": self.device,
            "workspace": self.options.workspace,
            "optimization_level": self.options.optimization_level,
        }

    def _build(
        self, graph: GraphInfo, shapes: Profile, key: str, report: Callable[[float], None]
    ) -> tuple[Path, dict[str, Any]]:
        timing = None
        if self.device:
            timing = cache.timing_cache(self.flavour.name, self.flavour.version, self.device)
        options = builder.BuildOptions(
            self.targets, self.options.workspace, self.options.optimization_level
        )
        # The cache knows an engine by the checksums in the manifest, so these must be right.
        for member in {graph.onnx, *graph.data} - self._intact:
            self.plan.check_member(member)
            self._intact.add(member)
        started = time.perf_counter()

        def build(copied: bool) -> builder.Built:
            with unpacked(self.plan, graph, copied) as path:
                source = builder.Source(
                    graph.name, path, self.precision, graph.inputs, graph.outputs, shapes
                )
                return builder.build(self.flavour, source, options, timing, report)

        try:
            built = build(copied=False)
        except builder.UnreadableGraph:
            if not graph.data:
                raise
            # A parser may refuse weights behind a symbolic link, as ONNX's own reader does.
            built = build(copied=True)
        note = {"seconds": time.perf_counter() - started, "memory": dict(built.memory)}
        try:
            return self.cache.store(key, built.data, note), note
        except OSError as error:
            raise DisaError(
                f"the engine of the graph {graph.name} cannot be stored in {self.cache.folder} "
                f"({error.strerror or error}): set DISA_CACHE to a folder with free space"
            ) from error


def _device_name() -> str:
    gpu = device.present()
    return gpu.name if gpu else ""


@contextmanager
def unpacked(plan: Plan, graph: GraphInfo, copied: bool = False) -> Iterator[Path]:
    """The path of a graph's ONNX file inside the block.

    Its weights stay in the plan: the file refers to the plan itself, linked beside it (or copied,
    if `copied`), as its external data.

    Raises:
        DisaError: there is no room, or the plan's file was replaced or changed in the meantime.
    """
    linked = f"weights{plan.path.suffix}"
    model = relocate(plan.read(graph.onnx), plan.extents(graph), linked)
    with tempfile.TemporaryDirectory(prefix="disa-") as folder:
        path = Path(folder) / "graph.onnx"
        try:
            if graph.data:
                make = shutil.copyfile if copied else _link
                make(plan.path.resolve(), Path(folder) / linked)
            path.write_bytes(model)
        except OSError as error:
            raise DisaError(
                f"the graph {graph.name} cannot be unpacked into {folder} "
                f"({error.strerror or error}): set TMPDIR to a folder with free space"
            ) from error
        yield path
        plan.check_unchanged()


def _link(target: Path, link: Path) -> None:
    for make in (os.symlink, os.link, shutil.copyfile):
        try:
            make(target, link)
            return
        except OSError as error:
            failure = error
    raise failure
