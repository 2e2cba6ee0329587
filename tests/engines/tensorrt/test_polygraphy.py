"""Polygraphy's opinion of the graphs: its lint, and its run of them against ours."""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("POLYGRAPHY_USE_TENSORRT_RTX", "1")

from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, CompareFunc
from polygraphy.tools import main as polygraphy

from disa.engines.ort.session import OnnxRuntimeSession
from disa.engines.plan.manifest import GraphInfo
from disa.engines.plan.plan import Plan
from disa.engines.session import DTYPES

from .graphs import unpack

MODELS = ("mar", "flowar_s", "xar", "harmon")


class PlanRunner(BaseRunner):
    """A graph of a plan on our own session, as Polygraphy runs it."""

    def __init__(self, plan: Plan, graph: str) -> None:
        super().__init__("disa", prefix="disa")
        self.plan, self.graph = plan, graph

    def activate_impl(self) -> None:
        self.session = OnnxRuntimeSession(self.plan, self.graph, threads=1)

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for spec in self.session.inputs:
            shape = [None if isinstance(size, str) else size for size in spec.shape]
            metadata.add(spec.name, DTYPES[spec.dtype], shape)
        return metadata

    def infer_impl(self, feed_dict: dict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        outputs = self.session.run(feed_dict)
        self.inference_time = 0.0
        return OrderedDict((name, np.asarray(value)) for name, value in outputs.items())

    def deactivate_impl(self) -> None:
        del self.session


def inputs(graph: GraphInfo, plan: Plan) -> dict[str, np.ndarray]:
    """Inputs of every type in sizes that the model can have; all indices are 0."""
    dimensions = plan.manifest.tokens.get("dimensions", {})
    sizes = {name: each[1] for name, each in dimensions.items() if len(each) == 3}
    sizes |= {
        "guidance": 2,
        "batch": 2,
        "visible": 3,
        "predicted": 4,
        "rows": 5,
        "steps": 6,
        "chunk": 3,
    }
    rng = np.random.default_rng(0)
    arrays = {}
    for spec in graph.inputs:
        shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        if spec.dtype == "float32":
            arrays[spec.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            arrays[spec.name] = np.zeros(shape, DTYPES[spec.dtype])
    return arrays


@pytest.fixture(params=MODELS)
def plan(request: pytest.FixtureRequest, golden_plan: Callable[..., Path]) -> Iterator[Plan]:
    with Plan.open(golden_plan(request.param)) as opened:
        yield opened


def test_lint(plan: Plan, tmp_path: Path) -> None:
    for graph in plan.manifest.graphs.values():
        path, report = unpack(plan, graph, tmp_path), tmp_path / "lint.json"
        shapes = [f"{name}:{list(a.shape)}" for name, a in inputs(graph, plan).items()]
        ranges = [f"{s.name}:[0,0]" for s in graph.inputs if s.dtype == "int64"]
        arguments = ["check", "lint", str(path), "-o", str(report), "--input-shapes", *shapes]
        status = polygraphy([*arguments, "--val-range", "[-1,1]", *ranges, "--silent"])
        entries = json.loads(report.read_text())["lint_entries"]
        assert (graph.name, [e for e in entries if e["level"] == "exception"]) == (graph.name, [])
        assert status == 0


def test_comparison(plan: Plan, tmp_path: Path) -> None:
    for graph in plan.manifest.graphs.values():
        path = unpack(plan, graph, tmp_path)
        runners = [
            OnnxrtRunner(SessionFromOnnx(str(path), providers=["CPUExecutionProvider"])),
            PlanRunner(plan, graph.name),
        ]
        given = inputs(graph, plan)
        results = Comparator.run(runners, data_loader=[given], warm_up=0)
        compare = CompareFunc.simple(atol=1e-5, rtol=1e-5)
        accuracy = Comparator.compare_accuracy(results, compare_func=compare)
        assert bool(accuracy), graph.name
