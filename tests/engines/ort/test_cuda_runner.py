"""Loops of ONNX Runtime on a GPU: CUDA graphs, fixed addresses, padding."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from disa.engines.gpu import loop
from disa.engines.ort import cuda_runner
from disa.engines.ort.cuda_runner import CudaContext, CudaRunner
from disa.engines.ort.session import OnnxRuntimeSession
from disa.engines.plan.plan import Plan
from disa.engines.plan.traits import GraphTraits, Role
from disa.engines.session import TensorSpec
from disa.errors import DisaError
from disa.runtime.pipeline import Pipeline
from disa.runtime.replay.reference import RecordedRun
from disa.runtime.replay.registry import REPLAYS

from ..fake_onnxruntime import FakeSession, use_fake_gpu
from ..tiny_graphs import (
    CHANNELS,
    TinyGraph,
    as_model,
    expected_backbone,
    expected_head,
    expected_loop,
    head_loop,
    write_plan,
)

GOLDEN = Path(__file__).parents[2] / "golden"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    return use_fake_gpu(monkeypatch)


def open_graph(path: Path, graph: str = "head", **options: bool) -> OnnxRuntimeSession:
    with Plan.open(path) as plan:
        return OnnxRuntimeSession(plan, graph, "device", **options)


def runner_of(session: OnnxRuntimeSession) -> CudaRunner:
    assert session.cuda is not None
    return session.cuda


def check(session: OnnxRuntimeSession, rows: int, steps: int, seed: int = 0) -> None:
    carry, *arguments = head_loop(rows, steps, seed)
    # Many steps must not grow beyond all numbers.
    arguments[0] = {"coefficients": 0.1 * arguments[0]["coefficients"]}
    found = np.asarray(session.iterate(carry, *arguments)["next_x"])
    np.testing.assert_allclose(found, expected_loop(*arguments), **TOLERANCE)


@pytest.mark.usefixtures("gpu")
def test_steps_are_captured_once_and_replayed(plan_path: Path) -> None:
    session = open_graph(plan_path)
    check(session, rows=5, steps=6)
    counts = runner_of(session).engine.counts
    assert (counts.plain, counts.captured, counts.replayed) == (2, 1, 3)
    # 5 to 8 rows stand on one rung of the ladder, and steps do not matter.
    for rows, steps, seed in ((7, 3, 1), (8, 6, 2), (5, 1, 3)):
        check(session, rows, steps, seed)
    assert (counts.plain, counts.captured, counts.replayed) == (2, 1, 13)


@pytest.mark.usefixtures("gpu")
def test_shapes_take_turns(plan_path: Path) -> None:
    session = open_graph(plan_path)
    for turn in range(4):
        for rows, steps in ((2, 4), (30, 5), (1, 3), (2, 5), (3, 70)):
            check(session, rows, steps, seed=turn)
    counts = runner_of(session).engine.counts
    # The table of 70 steps has a size of its own.
    assert counts.captured == 4
    assert counts.plain == 2 * 4


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("mar", "linear_cfg"),
        ("flowar_s", "guided"),
        ("xar", "guided"),
        ("harmon", "reference_a"),
    ],
)
def test_recorded_runs(
    gpu: type[FakeSession], name: str, run: str, golden_plan: Callable[..., Path]
) -> None:
    plan = Plan.open(golden_plan(name))
    sessions = {graph: OnnxRuntimeSession(plan, graph, "device") for graph in plan.manifest.graphs}
    pipe = Pipeline(plan, sessions)
    found = REPLAYS[plan.manifest.family](pipe, RecordedRun(GOLDEN / name / f"{run}.npz"))
    assert max(float(entry.relative) for entry in found) < 1e-4
    assert "CUDA graphs" not in pipe.engine
    assert any(opened.replays for opened in gpu.opened)


@pytest.mark.usefixtures("gpu")
def test_a_cached_backbone(golden_plan: Callable[..., Path]) -> None:
    plan = Plan.open(golden_plan("mar", cached_backbone=True))
    sessions = {graph: OnnxRuntimeSession(plan, graph, "device") for graph in plan.manifest.graphs}
    options: Any = {"num_iterations": 8, "steps": "4:2", "guidance_scale": 2.5, "refresh": "3:2"}
    found = Pipeline(plan, sessions)([1, 2, 3], **options).latents
    expected = Pipeline.from_plan(plan.path, "cpu")([1, 2, 3], **options).latents
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.usefixtures("gpu")
def test_growing_memory_captures_anew(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LEAST_MEMORY", 1)
    session = open_graph(plan_path)
    for rows, steps in ((2, 5), (2, 60), (64, 5), (64, 60), (2, 5)):
        check(session, rows, steps)
    assert runner_of(session).engine.counts.captured >= 3


@pytest.mark.usefixtures("gpu")
def test_results_outlive_later_replays(plan_path: Path) -> None:
    session = open_graph(plan_path)
    carry, constants, per_step, state = head_loop(rows=4, steps=5)
    once = {**constants, **state, **{name: values[0] for name, values in per_step.items()}}
    alone = session.run(once)["next_x"]
    looped = session.iterate(carry, constants, per_step, state)["next_x"]
    for seed in range(3):
        check(session, 4, 5, seed)
    np.testing.assert_allclose(np.asarray(alone), expected_head(once), **TOLERANCE)
    wanted = expected_loop(constants, per_step, state)
    np.testing.assert_allclose(np.asarray(looped), wanted, **TOLERANCE)


def test_an_iteration_uploads_once_and_never_waits(gpu: type[FakeSession], plan_path: Path) -> None:
    backbone, head = open_graph(plan_path, "backbone"), open_graph(plan_path)
    tokens = {
        "tokens": np.random.default_rng(0).random((3, 2, CHANNELS), np.float32),
        "class_index": np.array([[0, 2]]),
    }
    carry, constants, per_step, _ = head_loop(rows=2, steps=6)
    for _ in range(3):
        made = backbone.run(tokens)["condition"]
        gpu.device.uploads.clear()
        waits = gpu.device.waits
        found = head.iterate(carry, constants, per_step, {"x": made.reshape(2, CHANNELS)})
        assert len(gpu.device.uploads) == 1
        assert gpu.device.waits == waits
    wanted = expected_loop(constants, per_step, {"x": expected_backbone(tokens)[0]})
    np.testing.assert_allclose(np.asarray(found["next_x"]), wanted, **TOLERANCE)


@pytest.mark.usefixtures("gpu")
def test_with_and_without_graphs_the_same(plan_path: Path) -> None:
    carry, *arguments = head_loop(rows=5, steps=6)
    asked, not_asked = open_graph(plan_path), open_graph(plan_path, cuda_graphs=False)
    results = [np.asarray(s.iterate(carry, *arguments)["next_x"]) for s in (asked, not_asked)]
    runner_of(asked).engine.use_graphs = False
    replayed = runner_of(asked).engine.counts.replayed
    results.append(np.asarray(asked.iterate(carry, *arguments)["next_x"]))
    assert runner_of(asked).engine.counts.replayed == replayed > 0
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert runner_of(not_asked).engine.counts.captured == 0
    assert "no CUDA graphs (not requested)" in not_asked.description
    assert "CUDA graphs" not in asked.description


def test_a_session_that_cannot_capture_says_why(
    monkeypatch: pytest.MonkeyPatch, plan_path: Path
) -> None:
    gpu = use_fake_gpu(monkeypatch, refuses="the graph has control flow nodes")
    session = open_graph(plan_path)
    check(session, rows=5, steps=6)
    assert [opened.capture for opened in gpu.opened] == [False]
    assert runner_of(session).engine.counts.plain == 6
    assert session.description.endswith(
        "no CUDA graphs (the graph head of "
        f"{plan_path}: ONNX Runtime failed: the graph has control flow nodes)"
    )


def test_what_cannot_be_replayed_is_not_captured(gpu: type[FakeSession], tmp_path: Path) -> None:
    specs = TensorSpec("x", "float32", ("rows", 4)), TensorSpec("order", "int64", ("rows", 1))
    outputs = (TensorSpec("next_x", "float32", ("rows", 4)),)
    nodes = [helper.make_node("GatherND", ["x", "order"], ["next_x"])]
    model = as_model(nodes, [], specs, outputs)
    traits = GraphTraits(Role.STEP, split="rows")
    graph = TinyGraph("head", model.SerializeToString(), b"", specs, outputs, traits)
    session = open_graph(write_plan(tmp_path / "old.plan", [graph]))
    order = np.array([[[2], [0], [1]]] * 5)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = session.iterate({"next_x": "x"}, {}, {"order": order}, {"x": x})
    np.testing.assert_array_equal(np.asarray(found["next_x"]), x[[1, 2, 0]])
    assert "no CUDA graphs (GatherND of the graph cannot be replayed" in session.description
    assert not any(opened.replays for opened in gpu.opened)


def test_a_capture_that_fails_is_told_and_done_without(
    monkeypatch: pytest.MonkeyPatch, plan_path: Path
) -> None:
    gpu = use_fake_gpu(monkeypatch, breaks="CUDA failure 900: not permitted\nin cuda_graph.cc")
    session = open_graph(plan_path)
    assert "CUDA graphs" not in session.description
    for _ in range(2):
        check(session, rows=5, steps=6)
    assert gpu.device.abandoned == 1
    counts = runner_of(session).engine.counts
    assert (counts.plain, counts.captured) == (12, 0)
    assert "could not capture a step: CUDA failure 900: not permitted)" in session.description


def test_what_another_thread_deletes_is_not_freed_into_a_capture(
    gpu: type[FakeSession], plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_graph(plan_path)
    held = [session.empty((4,), np.float32)]
    capture, region = gpu._capture, gpu.device.regions[held[0].address]

    def delete(self: FakeSession, *arguments: Any) -> None:
        before = len(gpu.device.queue)
        held.clear()
        assert len(gpu.device.queue) == before, "memory was freed in a stream that captures"
        capture(self, *arguments)

    monkeypatch.setattr(gpu, "_capture", delete)
    check(session, rows=5, steps=6)
    gpu.device.flush()
    assert not region.alive


@pytest.mark.usefixtures("gpu")
def test_no_more_graphs_than_allowed(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_runner, "MAX_GRAPHS", 2)
    session = open_graph(plan_path)
    for rows in (1, 2, 4, 8, 1):
        check(session, rows, 4)
    counts = runner_of(session).engine.counts
    assert (counts.captured, counts.plain, counts.replayed) == (2, 12, 6)


def test_only_loops_are_captured(gpu: type[FakeSession], plan_path: Path) -> None:
    backbone = open_graph(plan_path, "backbone")
    assert [opened.capture for opened in gpu.opened] == [False]
    assert "CUDA graphs" not in backbone.description


def test_all_memory_is_given_back(gpu: type[FakeSession], plan_path: Path) -> None:
    session = open_graph(plan_path)
    for _ in range(3):
        check(session, rows=5, steps=6)
    backbone = open_graph(plan_path, "backbone")
    tokens = np.zeros((1, 2, CHANNELS), np.float32)
    backbone.run({"tokens": tokens, "class_index": np.zeros((1, 2), np.int64)})
    runner_of(session).stream.synchronize()
    alive = [region for region in gpu.device.regions.values() if region.alive]
    # Only the memory of the loop.
    assert len(alive) == 1
    del session
    gc.collect()


def test_sizes_of_outputs_come_from_those_of_inputs() -> None:
    inputs = TensorSpec("x", "float32", ("rows", 4)), TensorSpec("t", "float32", ())
    outputs = (
        TensorSpec("next_x", "float32", ("rows", 4)),
        TensorSpec("other", "float32", ("n",)),
    )
    context = CudaContext(inputs, outputs)
    assert context.get_tensor_shape("x") == ()
    context.set_input_shape("x", (3, 4))
    assert context.get_tensor_shape("next_x") == (3, 4)
    with pytest.raises(DisaError, match="do not determine n of other"):
        context.get_tensor_shape("other")
