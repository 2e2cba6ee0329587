"""Builds an engine from an ONNX graph."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DamagedFile, EngineError, InvalidRequest
from ..plan.engine_info import ShapeRange
from ..session import TensorSpec
from .cache import save
from .flavour import LEAST_SM, Flavour
from .logger import Messages, build_error, collect, last_error, logger_of
from .progress import Progress, new_monitor

_MEMORY = {
    "weights": "Total Weights Memory: ",
    "activations": "Total Activation Memory: ",
}


class UnreadableGraph(EngineError):
    """TensorRT cannot read a graph because of an unknown operator or a file that it refuses."""


@dataclass(frozen=True)
class BuildOptions:
    """Options that are equal for every graph of a plan."""

    targets: tuple[int, ...] = ()
    """Architectures, 89 for sm_89; empty for a flavour that builds for this machine's GPU."""
    workspace: int | None = None
    """Bytes of device memory that kernels may use; None for TensorRT's own choice."""
    optimization_level: int | None = None
    """0 (fast to build) to 5 (fast to run); None for TensorRT's own choice."""


@dataclass(frozen=True)
class Source:
    """A graph to be built, with its files and its signature in the plan."""

    name: str
    path: Path
    """The ONNX file, with its weights beside it."""
    precision: str
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    profile: Mapping[str, ShapeRange]


@dataclass
class Built:
    """A finished engine. `data` is a buffer owned by TensorRT."""

    data: Any
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes of "weights" and "activations", if the builder reported them."""


def check_targets(flavour: Flavour, targets: Iterable[int], precision: str) -> None:
    """Check the architectures against the flavour and the precision.

    Raises:
        DisaError: an architecture is not supported.
    """
    least = LEAST_SM[precision]
    for target in targets:
        if flavour.architectures and target not in flavour.architectures:
            can = ", ".join(f"sm_{known}" for known in flavour.architectures)
            raise EngineError(
                f"{flavour} cannot build for sm_{target}, only for {can}: "
                "use --engine tensorrt on a machine with that GPU, or --engine onnxruntime"
            )
        if target < least:
            raise InvalidRequest(
                f"sm_{target} does not compute in {precision}: "
                f"choose sm_{least} or later with --gpu, or another precision"
            )


def build(
    flavour: Flavour,
    source: Source,
    options: BuildOptions,
    timing_cache: Path | None = None,
    report: Callable[[float], None] = lambda share: None,
) -> Built:
    """Build one engine.

    Args:
        timing_cache: read and written if the flavour times kernels.
        report: called with the finished share.

    Raises:
        DisaError: the build failed; the message includes TensorRT's message.
        KeyboardInterrupt: the build was interrupted.
    """
    trt = flavour.trt
    check_targets(flavour, options.targets, source.precision)
    with collect(trt) as messages:
        builder = flavour.start("Builder")
        network = flavour.create_network(builder)
        parser = trt.OnnxParser(network, logger_of(trt))
        if not parser.parse_from_file(str(source.path)):
            raise UnreadableGraph(
                f"{flavour} cannot read the graph {source.name}: {_parser_errors(parser, messages)}"
            )
        check_network(source, network)
        config = builder.create_builder_config()
        progress = Progress(report)
        config.progress_monitor = new_monitor(trt, progress)
        _configure(flavour, config, source, options, messages)
        config.add_optimization_profile(_profile(builder, source))
        cache = _load_timing_cache(flavour, config, timing_cache)
        data = builder.build_serialized_network(network, config)
        if progress.interrupted:
            raise KeyboardInterrupt
        if data is None:
            raise build_error(messages, f"the graph {source.name}", options.workspace)
        report(1.0)
    if cache is not None and timing_cache is not None:
        save(timing_cache, cache.serialize())
    return Built(data, _memory(messages.information))


def check_network(source: Source, network: Any) -> None:
    """Compare the inputs and outputs of the parsed network with the plan's.

    Raises:
        DisaError: they differ.
    """
    for kind, specs, count, get in (
        ("input", source.inputs, network.num_inputs, network.get_input),
        ("output", source.outputs, network.num_outputs, network.get_output),
    ):
        parsed = {tensor.name: tensor for tensor in map(get, range(count))}
        if parsed.keys() != {spec.name for spec in specs}:
            raise DamagedFile(
                f"the graph {source.name} has the {kind}s {', '.join(parsed)}, but the plan has "
                f"{', '.join(spec.name for spec in specs)}"
            )
        for spec in specs:
            _check_tensor(source.name, kind, spec, parsed[spec.name])


def _check_tensor(graph: str, kind: str, spec: TensorSpec, tensor: Any) -> None:
    dtype = {"FLOAT": "float32", "INT64": "int64"}.get(tensor.dtype.name, tensor.dtype.name)
    fits = dtype == spec.dtype and len(tensor.shape) == len(spec.shape)
    for size, wanted in zip(tensor.shape, spec.shape, strict=False):
        if kind == "input":
            fits = fits and size == (-1 if isinstance(wanted, str) else wanted)
        else:
            # The parser knows an output dimension only if it could compute it.
            fits = fits and (isinstance(wanted, str) or size in (wanted, -1))
    if not fits:
        raise DamagedFile(
            f"the {kind} {tensor.name} of the graph {graph} is {dtype}{list(tensor.shape)}, "
            f"but the plan has {spec}"
        )


def _configure(
    flavour: Flavour, config: Any, source: Source, options: BuildOptions, messages: Messages
) -> None:
    trt = flavour.trt
    refused = flavour.set_targets(config, options.targets)
    if refused is not None:
        raise EngineError(f"{flavour} does not build for sm_{refused}: {last_error(messages)}")
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:
        # TF32 keeps 10 bits of the mantissa, like fp16. Plans of lower precision also have graphs
        # and matmuls that stay in fp32, because they need it.
        config.clear_flag(tf32)
    # Layer names cost almost nothing, and the engine inspector needs them.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED


def _profile(builder: Any, source: Source) -> Any:
    profile = builder.create_optimization_profile()
    for name, shapes in source.profile.items():
        profile.set_shape(name, shapes.minimum, shapes.usual, shapes.maximum)
    return profile


def _parser_errors(parser: Any, messages: Messages) -> str:
    found = []
    for index in range(min(parser.num_errors, 3)):
        error = parser.get_error(index)
        where = " ".join(filter(None, [error.node_operator(), error.node_name()]))
        found.append(f"{where}: {error.desc()}" if where else error.desc())
    return "; ".join(found) or last_error(messages)


def _load_timing_cache(flavour: Flavour, config: Any, path: Path | None) -> Any:
    if path is None or flavour.finishes_kernels_at_run_time:
        return None
    data = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        # The timings are from another GPU or version: start with an empty cache.
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _memory(information: Iterable[str]) -> dict[str, int]:
    found = {}
    for line in information:
        for name, prefix in _MEMORY.items():
            if line.startswith(prefix) and line.endswith(" bytes"):
                found[name] = int(line.removeprefix(prefix).removesuffix(" bytes"))
    return found
