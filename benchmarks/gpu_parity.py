"""Whether every engine computes what it should: recorded runs, batch sizes, CUDA graphs."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from disa.engines.build import EngineOptions, add_engines
from disa.engines.tensorrt.profile import Range
from disa.engines.tensorrt.session import TensorRTSession
from disa.errors import DisaError
from disa.exporter.export import export
from disa.runtime.pipeline import Pipeline
from disa.runtime.reference import Reference
from disa.runtime.verify import REPLAYS

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
    source, path = GOLDEN / model, folder / f"{model}-{precision}.plan"
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


def attempt(name: str, engine: str, check: Callable[[], Check]) -> Check:
    """The outcome of a check; what is raised is a failure with its words."""
    started = time.perf_counter()
    try:
        result = check()
    except (DisaError, RuntimeError) as error:
        result = Check(name, engine, False, f"{type(error).__name__}: {error}")
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
    """The head's steps as one CUDA graph against the same steps one by one."""
    path = with_engines(plan_of("mar", precision, folder), engine, Range(1, 2, 4))
    pipe = Pipeline.from_plan(path, engine)
    head = pipe.sessions["head"]
    name = f"CUDA graph {precision}"
    if not isinstance(head, TensorRTSession):
        return Check(name, pipe.engine, True, "this engine captures nothing by itself")
    arrays = head_arrays(pipe, rows=5, steps=12)
    results = [np.asarray(head.iterate({"next_x": "x"}, *arrays)["next_x"]) for _ in range(3)]
    loop = head.loop
    assert loop is not None
    if loop.use_graphs and not loop.counts.launched:
        return Check(name, pipe.engine, False, f"nothing was captured: {loop.graphs_failed}")
    worst = max(relative(result, results[0]) for result in results[1:])
    return Check(
        name,
        pipe.engine,
        worst <= 1e-6,
        f"relative difference {worst:.1e}; {loop.counts}",
        {"relative_difference": worst},
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
    difference = float(np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30))
    return difference if np.isfinite(difference) else float("inf")
