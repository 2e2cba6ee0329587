"""Checks the results of every engine: recorded runs, batch sizes, CUDA graphs."""

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from disa.engines.gpu.profile import Range
from disa.engines.plan.traits import Role
from disa.engines.tensorrt.build import EngineOptions, add_engines
from disa.engines.tensorrt.session import TensorRTSession
from disa.errors import DisaError
from disa.exporter.export import export
from disa.relative_error import relative_error
from disa.runtime.pipeline import Pipeline
from disa.runtime.replay.reference import RecordedRun
from disa.runtime.replay.registry import REPLAYS

from ..gpu_check import golden_plan
from ..official.contenders import session_of

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
TOLERANCES = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1}
"""Largest relative error against recorded runs in fp32, after all their iterations."""
CONFIGS = {"harmon": "config.json"}


@dataclass
class CheckResult:
    """The result of a check.

    Attributes:
        name: name of the check.
        engine: the engine that really ran.
        passed: whether the errors are within the tolerance.
        detail: a sentence about the result.
        numbers: the errors and times.
    """

    name: str
    engine: str
    passed: bool
    detail: str
    numbers: dict[str, Any] = field(default_factory=dict)


def plan_of(model: str, precision: str, folder: Path) -> Path:
    """Export the plan of a golden model, unless it exists."""
    source, path = GOLDEN / model, folder / golden_plan(model, precision)
    if not path.exists():
        config = source / CONFIGS.get(model, "architecture.json")
        export(source / "checkpoint.pth", path, precision=precision, config=config, check=False)
    return path


def with_engines(path: Path, engine: str, batch: Range) -> Path:
    """Write a copy of a plan with compiled engines, unless it exists; `path` for ONNX Runtime."""
    if not engine.startswith("tensorrt"):
        return path
    output = path.with_name(f"{path.stem}-{engine}.plan")
    if not output.exists():
        add_engines(path, EngineOptions(engine, batch=batch), output)
    return output


def unusable(engine: str, folder: Path) -> str:
    """The reason why an engine cannot be used here; empty if it can."""
    if engine == "cpu":
        return ""
    try:
        path = with_engines(plan_of("mar", "fp32", folder), engine, Range(1, 2, 4))
        Pipeline.from_plan(path, engine)([0], num_iterations=2, steps="2:2")
    except DisaError as error:
        return str(error)
    return ""


def checks(
    engine: str, precisions: list[str], models: list[str], folder: Path
) -> Iterator[CheckResult]:
    """All checks of an engine; if the first model is MAR, batch sizes and CUDA graphs too."""
    for precision in precisions:
        for model in models:
            reference = min((GOLDEN / model).glob("*.npz"))
            yield attempt(
                f"{model} {precision} {reference.stem}",
                engine,
                lambda: replay(engine, model, precision, reference, folder),  # noqa: B023
            )
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


def attempt(name: str, engine: str, check: Callable[[], CheckResult]) -> CheckResult:
    """Run a check; an exception becomes a failed result."""
    started = time.perf_counter()
    try:
        result = check()
    # The other checks must run, whatever goes wrong in this one.
    except Exception as error:
        result = CheckResult(name, engine, False, f"{type(error).__name__}: {error}")
        result.numbers["traceback"] = traceback.format_exc()[-3000:]
    result.numbers["seconds"] = round(time.perf_counter() - started, 2)
    return result


def replay(engine: str, model: str, precision: str, reference: Path, folder: Path) -> CheckResult:
    """Compare a run with the recorded one."""
    path = with_engines(plan_of(model, precision, folder), engine, Range(1, 2, 4))
    pipe = Pipeline.from_plan(path, engine, exact=True)
    found = REPLAYS[pipe.plan.manifest.family](pipe, RecordedRun(reference))
    worst = max(float(entry.relative) for entry in found)
    limit = TOLERANCES[precision]
    return CheckResult(
        f"{model} {precision} {reference.stem}",
        pipe.engine,
        worst <= limit,
        f"relative error {worst:.1e}, at most {limit:.0e}",
        {"relative_error": worst},
    )


def batch_invariance(
    engine: str, precision: str, folder: Path, sizes: tuple[int, ...]
) -> CheckResult:
    """Compare every image of a batch with the same image generated alone."""
    path = with_engines(plan_of("mar", precision, folder), engine, Range(1, 2, 4))
    pipe = Pipeline.from_plan(path, engine, exact=True)
    labels, iterations = list(range(max(sizes))), min(8, pipe.plan.manifest.tokens["count"])

    def generate(batch: int) -> np.ndarray:
        return pipe(labels, num_iterations=iterations, batch_size=batch, seed=3).latents

    alone, worst, equal = generate(1), 0.0, 0
    for size in sizes:
        for image, reference in zip(generate(size), alone, strict=True):
            worst = max(worst, relative_error(image, reference))
            equal += bool(np.array_equal(image, reference))
    # The first batch size is 1: the same run twice must give identical results.
    repeated = np.array_equal(generate(1), alone)
    limit = TOLERANCES[precision]
    return CheckResult(
        f"batch sizes {sizes} {precision}",
        pipe.engine,
        worst <= limit and repeated,
        f"relative difference {worst:.1e}, {equal} of {len(sizes) * len(labels)} images "
        f"identical, the same run twice {'identical' if repeated else 'DIFFERENT'}",
        {"relative_difference": worst, "equal": equal, "images": len(sizes) * len(labels)},
    )


def graph_against_plain(engine: str, precision: str, folder: Path) -> CheckResult:
    """Compare head steps in CUDA graphs with the same steps one by one, with alternating shapes."""
    path = with_engines(plan_of("mar", precision, folder), engine, Range(1, 2, 4))
    pipe = Pipeline.from_plan(path, engine)
    head: Any = session_of(pipe, Role.STEP)
    name = f"CUDA graph {precision}"
    if not isinstance(head, TensorRTSession) and head.cuda is None:
        return CheckResult(name, pipe.engine, True, "this engine makes no CUDA graphs")
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
            worst = max(worst, relative_error(found, plain[index]))
    failed, done = graphs_made(head)
    limit = 1e-6 if precision == "fp32" else 1e-3
    return CheckResult(
        name,
        pipe.engine,
        worst <= limit and not failed,
        f"relative difference {worst:.1e}; {failed or done}",
        {"relative_difference": worst, "plain_seconds": seconds[0], "graph_seconds": seconds[1]},
    )


def switch_graphs(head: Any, on: bool) -> None:
    """Turn CUDA graphs of a session on or off; TensorRT-RTX decides by itself."""
    if not isinstance(head, TensorRTSession):
        if head.cuda is not None:
            head.cuda.engine.use_graphs = on
    elif head.loop is not None and not head.engine.captures_by_itself:
        head.loop.use_graphs = on


def graphs_made(head: Any) -> tuple[str, str]:
    """The reason why no CUDA graphs were captured, empty if they were; and the counts."""
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
    for spec in session_of(pipe, Role.STEP).inputs:
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
