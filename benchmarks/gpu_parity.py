"""Whether every engine computes what it should: recorded runs, batch sizes, CUDA graphs."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from disa.engines.build import EngineOptions, add_engines, build_engines, unpacked
from disa.engines.gpu.device import present
from disa.engines.gpu.profile import Range, dimensions, graph_profile
from disa.engines.plan import Plan
from disa.engines.tensorrt.flavour import TENSORRT_RTX, Flavour, find
from disa.engines.tensorrt.logger import collect, logger_of
from disa.engines.tensorrt.session import TensorRTSession
from disa.errors import DisaError
from disa.exporter.export import export
from disa.runtime.pipeline import Pipeline
from disa.runtime.reference import Reference
from disa.runtime.verify import REPLAYS

from .gpu_check import golden_plan

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
TOLERANCES = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1}
"""Largest relative error against recorded runs in fp32, after all their iterations."""
CONFIGS = {"harmon": "config.json"}


@dataclass
class Check:
    """One thing that was looked at."""

    name: str
    engine: str
    passed: bool
    detail: str
    numbers: dict[str, Any] = field(default_factory=dict)


def plan_of(model: str, precision: str, folder: Path) -> Path:
    """The plan of a golden model."""
    source, path = GOLDEN / model, folder / golden_plan(model, precision)
    if not path.exists():
        config = source / CONFIGS.get(model, "architecture.json")
        export(source / "checkpoint.pth", path, precision=precision, config=config, check=False)
    return path


def with_engines(path: Path, engine: str, batch: Range) -> Path:
    """The plan with engines for `engine`, beside it; itself for ONNX Runtime."""
    if not engine.startswith("tensorrt"):
        return path
    output = path.with_name(f"{path.stem}-{engine}.plan")
    if not output.exists():
        add_engines(path, EngineOptions(engine, batch=batch), output)
    return output


def unusable(engine: str, folder: Path) -> str:
    """Why an engine cannot draw here; empty if it can."""
    if engine == "cpu":
        return ""
    try:
        path = with_engines(plan_of("mar", "fp32", folder), engine, Range(1, 2, 4))
        Pipeline.from_plan(path, engine)([0], num_iterations=2, steps="2:2")
    except DisaError as error:
        return str(error)
    return ""


def checks(engine: str, precisions: list[str], models: list[str], folder: Path) -> Iterator[Check]:
    """Everything that an engine is checked for, the first model by itself too."""
    for precision in precisions:
        yield from replays(engine, models, [precision], folder, 1)
        if models[0] == "mar":
            yield attempt(
                f"batch sizes {precision}",
                engine,
                lambda: batch_invariance(engine, precision, folder, (1, 2, 3, 5)),  # noqa: B023
            )
            yield attempt(
                f"CUDA graph {precision}",
                engine,
                lambda: graph_against_plain(engine, precision, folder),  # noqa: B023
            )


def refusals(folder: Path) -> Iterator[tuple[str, Any]]:
    """What TensorRT-RTX says of this GPU: while building, of an engine's header, on loading.

    The engine is built for the architectures that it does support.
    """
    flavour = find(TENSORRT_RTX)
    if isinstance(flavour, str):
        yield "imported", flavour
        return
    gpu = present()
    yield "gpu", None if gpu is None else f"{gpu.name}, sm_{gpu.sm}"
    with Plan.open(plan_of("mar", "fp16", folder)) as plan:
        if gpu is not None:
            yield (
                "disa's builder, for this GPU",
                _asked(lambda: build_engines(plan, EngineOptions(TENSORRT_RTX, (gpu.sm,)))),
            )
            yield "its own builder, for the GPU present", own_builder(flavour, plan)
        built = build_engines(plan, EngineOptions(TENSORRT_RTX, (80, 86, 89, 120)))[-1]
    data = built.path.read_bytes()
    with collect(flavour.trt) as messages:
        runtime = flavour.trt.Runtime(logger_of(flavour.trt))
        yield "validity of an engine", flavour.validity(runtime, memoryview(data)) or "valid"
        loaded = runtime.deserialize_cuda_engine(data)
        yield "loading an engine", "refused" if loaded is None else "done"
        yield "messages", list(messages.errors)


def own_builder(flavour: Flavour, plan: Plan) -> str:
    """What the builder says that is given no architecture but the GPU in this machine."""
    graph = plan.graph("decoder")
    with collect(flavour.trt) as messages, unpacked(plan, graph) as path:
        made = flavour.trt.Builder(logger_of(flavour.trt))
        network = flavour.create_network(made)
        flavour.trt.OnnxParser(network, logger_of(flavour.trt)).parse_from_file(str(path))
        config = made.create_builder_config()
        config.num_compute_capabilities = 1
        taken = config.set_compute_capability(flavour.trt.ComputeCapability.CURRENT, 0)
        profile = made.create_optimization_profile()
        ranges = dimensions(plan.manifest.tokens, plan.manifest.defaults, Range(1, 2, 4))
        for name, shapes in graph_profile(graph.name, graph.inputs, ranges).items():
            profile.set_shape(name, shapes.minimum, shapes.usual, shapes.maximum)
        config.add_optimization_profile(profile)
        data = made.build_serialized_network(network, config) if taken else None
        return "done" if data is not None else "; ".join(messages.errors) or "refused without words"


def _asked(work: Callable[[], object]) -> str:
    try:
        work()
    except DisaError as error:
        return str(error)
    return "done"


def attempt(name: str, engine: str, check: Callable[[], Check]) -> Check:
    """The outcome of a check; what is raised is a failure with its words."""
    started = time.perf_counter()
    try:
        result = check()
    # Whatever goes wrong the first time on a GPU, the other checks are to be done.
    except Exception as error:
        result = Check(name, engine, False, f"{type(error).__name__}: {error}")
        result.numbers["traceback"] = traceback.format_exc()[-3000:]
    result.numbers["seconds"] = round(time.perf_counter() - started, 2)
    return result


def replays(
    engine: str, models: list[str], precisions: list[str], folder: Path, most: int
) -> Iterator[Check]:
    """Recorded runs replayed through an engine, at most `most` a model."""
    for model in models:
        for precision in precisions:
            for reference in sorted((GOLDEN / model).glob("*.npz"))[:most]:
                name = f"{model} {precision} {reference.stem}"
                yield attempt(
                    name,
                    engine,
                    lambda: _replay(engine, model, precision, reference, folder),  # noqa: B023
                )


def _replay(engine: str, model: str, precision: str, reference: Path, folder: Path) -> Check:
    path = with_engines(plan_of(model, precision, folder), engine, Range(1, 2, 4))
    pipe = Pipeline.from_plan(path, engine, exact=True)
    found = REPLAYS[pipe.plan.manifest.family](pipe, Reference(reference))
    worst = max(float(entry.relative) for entry in found)
    limit = TOLERANCES[precision]
    return Check(
        f"{model} {precision} {reference.stem}",
        pipe.engine,
        worst <= limit,
        f"relative error {worst:.1e}, at most {limit:.0e}",
        {"relative_error": worst},
    )


def batch_invariance(engine: str, precision: str, folder: Path, sizes: tuple[int, ...]) -> Check:
    """Every image of a batch against the same image drawn alone."""
    path = with_engines(plan_of("mar", precision, folder), engine, Range(1, 2, 4))
    pipe = Pipeline.from_plan(path, engine, exact=True)
    labels, iterations = list(range(max(sizes))), min(8, pipe.plan.manifest.tokens["count"])

    def draw(batch: int) -> np.ndarray:
        return pipe(labels, num_iterations=iterations, batch_size=batch, seed=3).latents

    alone, worst, equal = draw(1), 0.0, 0
    for size in sizes:
        for image, reference in zip(draw(size), alone, strict=True):
            worst = max(worst, relative(image, reference))
            equal += bool(np.array_equal(image, reference))
    # The first batch size is 1: what runs twice must be the same to the last bit.
    repeated = np.array_equal(draw(1), alone)
    limit = TOLERANCES[precision]
    return Check(
        f"batch sizes {sizes} {precision}",
        pipe.engine,
        worst <= limit and repeated,
        f"relative difference {worst:.1e}, {equal} of {len(sizes) * len(labels)} images equal to "
        f"the last bit, the same run twice {'equal' if repeated else 'DIFFERENT'}",
        {"relative_difference": worst, "equal": equal, "images": len(sizes) * len(labels)},
    )


def graph_against_plain(engine: str, precision: str, folder: Path) -> Check:
    """The head's steps as CUDA graphs against the same steps one by one, shapes taking turns."""
    path = with_engines(plan_of("mar", precision, folder), engine, Range(1, 2, 4))
    pipe = Pipeline.from_plan(path, engine)
    head: Any = pipe.sessions["head"]
    name = f"CUDA graph {precision}"
    if not isinstance(head, TensorRTSession) and head.cuda is None:
        return Check(name, pipe.engine, True, "this engine makes no CUDA graphs")
    loops = [head_arrays(pipe, rows, steps) for rows, steps in ((5, 12), (40, 7), (1, 3))]
    plain: list[np.ndarray] = []
    worst, seconds = 0.0, [0.0, 0.0]
    for turn in range(4):
        switch_graphs(head, turn > 0)
        for index, arrays in enumerate(loops):
            started = time.perf_counter()
            found = np.asarray(head.iterate({"next_x": "x"}, *arrays)["next_x"])
            seconds[turn > 0] = time.perf_counter() - started
            if turn == 0:
                plain.append(found)
            worst = max(worst, relative(found, plain[index]))
    failed, done = graphs_made(head)
    limit = 1e-6 if precision == "fp32" else 1e-3
    return Check(
        name,
        pipe.engine,
        worst <= limit and not failed,
        f"relative difference {worst:.1e}; {failed or done}",
        {"relative_difference": worst, "plain_seconds": seconds[0], "graph_seconds": seconds[1]},
    )


def switch_graphs(head: Any, on: bool) -> None:
    """Let a session replay CUDA graphs, or not; TensorRT-RTX decides by itself."""
    if not isinstance(head, TensorRTSession):
        if head.cuda is not None:
            head.cuda.engine.use_graphs = on
    elif head.loop is not None and not head.engine.captures_by_itself:
        head.loop.use_graphs = on


def graphs_made(head: Any) -> tuple[str, str]:
    """Why no CUDA graphs were made, empty if they were; and what was done."""
    if not isinstance(head, TensorRTSession):
        made = head.cuda.engine
        nothing = "" if made.counts.replayed else "nothing was replayed"
        return made.graphs_failed or nothing, str(made.counts)
    loop = head.loop
    assert loop is not None
    if head.engine.captures_by_itself:
        return "", f"TensorRT-RTX captures; {loop.counts}"
    return loop.graphs_failed or ("" if loop.counts.launched else "nothing was launched"), str(
        loop.counts
    )


def head_arrays(pipe: Pipeline, rows: int, steps: int) -> tuple[dict[str, Any], ...]:
    """Constants, per-step inputs and state for the head of a pipeline's plan."""
    rng, given = np.random.default_rng(0), {}
    for spec in pipe.sessions["head"].inputs:
        sizes = {"rows": rows, "guidance": 2, "steps": steps}
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        if spec.name not in ("step", "noise"):
            given[spec.name] = rng.standard_normal(shape).astype(np.float32)
    given["coefficients"] *= 0.3
    state = {"x": given.pop("x")}
    channels = state["x"].shape[1]
    per_step = {
        "step": np.repeat(np.arange(steps)[:, None], rows, axis=1),
        "noise": rng.standard_normal((steps, rows, channels)).astype(np.float32),
    }
    return given, per_step, state


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference over the norm; infinite if anything is not finite."""
    error, norm = float(np.linalg.norm(found - wanted)), float(np.linalg.norm(wanted))
    difference = error / max(norm, 1e-30)
    return difference if np.isfinite(difference) else float("inf")
