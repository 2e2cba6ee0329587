"""Builds TensorRT engines for the graphs of a plan, and adds them to it."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import click

from ..cli import progress_bar
from ..errors import DisaError
from .gpu import device, profile
from .manifest import EngineInfo, GraphInfo, Profile
from .onnx_file import Extent, relocate
from .plan import Plan
from .plan_writer import PlanWriter
from .tensorrt import builder, cache, flavour

DEFAULT_TARGETS = (80, 86, 89, 120)
"""Built for when neither `--gpu` nor a GPU says for what: what TensorRT-RTX runs on."""
_KEY_VERSION = 1


@dataclass(frozen=True)
class EngineOptions:
    """What to build engines for."""

    engine: str | None = None
    """"tensorrt", "tensorrt-rtx", or None for the one that is installed."""
    gpus: tuple[int, ...] = ()
    """Architectures, 89 for sm_89; empty for the GPU present, or all if there is none."""
    batch: profile.Range = field(default_factory=lambda: profile.Range(1, 8, 64))
    workspace: int | None = None
    """Bytes."""
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
        """From the arguments that `engine_options` gives; None if no engines are wanted."""
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
    """An engine in the cache, ready to be put into a plan."""

    info: EngineInfo
    path: Path
    size: int
    seconds: float
    """How long it took to build, now or before."""
    cached: bool


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that builds engines; see `EngineOptions.from_command`."""
    options = [
        click.option(
            "--engine",
            type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]),
            default="auto",
            show_default=True,
            help="What to build engines with; onnxruntime builds none.",
        ),
        click.option(
            "--gpu",
            "gpus",
            callback=_parsed(parse_gpus, ()),
            metavar="sm_89,sm_120",
            help="Architectures to build for.  [default: the GPU present]",
        ),
        click.option(
            "--batch-size",
            "batch",
            default="1:8:64",
            show_default=True,
            callback=_parsed(profile.Range.parse, None),
            metavar="MIN:USUAL:MAX",
            help="Images at a time; the engine is fastest at USUAL.",
        ),
        click.option(
            "--workspace",
            type=click.IntRange(min=1),
            metavar="MIB",
            help="Device memory that a kernel may use while it runs, in MiB.  [default: all]",
        ),
        click.option(
            "--optimization-level",
            type=click.IntRange(0, 5),
            help="0 builds fastest, 5 runs fastest.  [default: TensorRT's own]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _parsed(parse: Callable[[str], Any], absent: Any) -> Callable[..., Any]:
    """A callback of an option; what cannot be parsed is a usage error."""

    def callback(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Any:
        try:
            return absent if text is None else parse(text)
        except DisaError as error:
            raise click.BadParameter(str(error)) from error

    return callback


def parse_gpus(text: str) -> tuple[int, ...]:
    """Architectures from "sm_89,sm_120", also written 89 or 8.9. DisaError for anything else."""
    targets = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:sm_?)?(\d{2,3}|\d{1,2}\.\d)\s*", part, re.IGNORECASE)
        if not match:
            raise DisaError(f"{part.strip()!r} is no GPU architecture: write it as sm_89")
        targets.append(int(match[1].replace(".", "")))
    return tuple(sorted(set(targets)))


def engines_by_default() -> bool:
    """Whether engines are built without being asked for: a GPU and a TensorRT that knows it."""
    try:
        chosen, gpu = flavour.load(), device.present()
    except DisaError:
        return False
    return gpu is not None and (not chosen.architectures or gpu.sm in chosen.architectures)


def add_engines(
    path: Path, options: EngineOptions, output: Path | None = None
) -> tuple[BuiltEngine, ...]:
    """Build engines for all graphs of the plan at `path` and write it with them.

    Engines of the same backend for no other architectures are replaced; others stay. The
    plan is written to `output`, or over itself, whole or not at all.
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
    """DisaError if engines of this precision cannot be built so; takes no time."""
    chosen = flavour.load(options.engine, ahead_of_time=bool(options.gpus))
    builder.check_targets(chosen, targets(chosen, options.gpus, precision), precision)


def _replaces(new: EngineInfo, old: EngineInfo) -> bool:
    same = (new.graph, new.backend) == (old.graph, old.backend)
    return same and set(old.architectures) <= set(new.architectures)


def build_engines(plan: Plan, options: EngineOptions) -> tuple[BuiltEngine, ...]:
    """Engines for all graphs of a plan, from the cache where nothing has changed.

    Shows a progress bar. Raises DisaError with the reason if one cannot be built.
    """
    chosen = flavour.load(options.engine, ahead_of_time=bool(options.gpus))
    job = _Job(plan, options, chosen, targets(chosen, options.gpus, plan.manifest.precision))
    graphs = list(plan.manifest.graphs.values())
    for graph in graphs:
        builder.check_targets(chosen, job.targets, plan.manifest.precision)
        profile.graph_profile(graph.name, graph.inputs, job.ranges)
    built = []
    with progress_bar(100 * len(graphs), f"Building with {chosen}", "%") as advance:
        for graph in graphs:
            built.append(job.build(graph, _Share(advance)))
    return tuple(built)


class _Share:
    """Turns shares of one graph into steps of the bar."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self.advance, self.shown = advance, 0

    def __call__(self, share: float) -> None:
        percent = int(100 * share)
        if percent > self.shown:
            self.advance(percent - self.shown)
            self.shown = percent


def targets(chosen: flavour.Flavour, gpus: Sequence[int], precision: str) -> tuple[int, ...]:
    """Architectures to build for: those given, the GPU present, or all that have the precision."""
    if chosen.architectures and gpus:
        return tuple(gpus)
    gpu = device.present()
    if chosen.architectures:
        able = tuple(sm for sm in DEFAULT_TARGETS if sm >= flavour.LEAST_SM[precision])
        return (gpu.sm,) if gpu else able
    if gpu is None:
        raise DisaError(
            f"{chosen} needs the GPU that it builds for, and none is here: run this on the "
            "machine that will run the plan, or use --engine tensorrt-rtx --gpu sm_89"
        )
    if gpus and set(gpus) != {gpu.sm}:
        raise DisaError(
            f"{chosen} builds only for the GPU in this machine, which is sm_{gpu.sm}: "
            "leave --gpu out, or use --engine tensorrt-rtx"
        )
    return (gpu.sm,)


class _Job:
    """What is the same for all graphs of one build."""

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
            # A parser may refuse weights behind a link, as ONNX's own reader does.
            built = build(copied=True)
        note = {"seconds": time.perf_counter() - started, "memory": dict(built.memory)}
        try:
            return self.cache.store(key, built.data, note), note
        except OSError as error:
            raise DisaError(
                f"the engine of the graph {graph.name} cannot be kept in {self.cache.folder} "
                f"({error.strerror or error}): set DISA_CACHE to a folder with room"
            ) from error


def _device_name() -> str:
    gpu = device.present()
    return gpu.name if gpu else ""


@contextmanager
def unpacked(plan: Plan, graph: GraphInfo, copied: bool = False) -> Iterator[Path]:
    """The path of a graph's ONNX file while the block runs.

    Its weights stay in the plan: the file names the plan itself, linked beside it (or a copy
    of it, if `copied`), as the place of its external data.
    """
    linked = f"weights{plan.path.suffix}"
    locations = {
        PurePosixPath(member).name: Extent(plan.offset(member), len(plan.read(member)))
        for member in graph.data
    }
    model = relocate(plan.read(graph.onnx), locations, linked)
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
                f"({error.strerror or error}): set TMPDIR to a folder with room"
            ) from error
        yield path


def _link(target: Path, link: Path) -> None:
    for make in (os.symlink, os.link, shutil.copyfile):
        try:
            make(target, link)
            return
        except OSError as error:
            failure = error
    raise failure
