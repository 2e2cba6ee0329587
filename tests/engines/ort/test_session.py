import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import disa.engines.ort.session as sessions
from disa.engines.cpu import physical_cores
from disa.engines.ort.session import OnnxRuntimeSession, session_options
from disa.engines.plan.plan import Plan
from disa.errors import DisaError, MissingDependency

from ..bad_plans import (
    cut_weights,
    damage_graph,
    empty,
    lie,
    not_onnx,
    steal,
    swap_types,
)
from ..loading_memory import loading_memory
from ..tiny_graphs import (
    INT8_DEPTH,
    RESULT,
    VECTOR,
    External,
    TinyGraph,
    as_model,
    backbone,
    graph,
    head,
    head_loop,
    write_int8_plan,
    write_plan,
)


def large_graph(megabytes: int) -> TinyGraph:
    external = External("head.data")
    width = megabytes << 16
    constants = [
        external.add("up", np.ones((4, width), np.float32)),
        numpy_helper.from_array(np.array([1]), "axis"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["wide"]),
        helper.make_node("ReduceMax", ["wide", "axis"], ["top"]),
        helper.make_node("Add", ["x", "top"], ["y"]),
    ]
    model = as_model(nodes, constants, VECTOR, RESULT)
    return TinyGraph("head", model.SerializeToString(), external.data, VECTOR, RESULT)


def test_weights_are_not_copied(tmp_path: Path) -> None:
    size = 64 << 20
    small = write_plan(tmp_path / "small.plan", [large_graph(1)])
    path = write_plan(tmp_path / "large.plan", [large_graph(64)])
    assert loading_memory("mapped", small, path) < size / 2
    assert size / 2 < loading_memory("packed", small, path) < 1.5 * size
    with Plan.open(path) as plan:
        session = OnnxRuntimeSession(plan, "head", prepack=False)
        assert session.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[5.0] * 4]


def test_sums_of_int8_products_do_not_saturate(tmp_path: Path) -> None:
    with Plan.open(write_int8_plan(tmp_path / "int8.plan")) as plan:
        y = OnnxRuntimeSession(plan, "head").run({"x": np.full((3, INT8_DEPTH), 127, np.float32)})
    assert y["y"].tolist() == [[INT8_DEPTH * 127.0**2] * 4] * 3


@pytest.mark.parametrize("exact", [True, False])
def test_int8_kernels_are_replaced_only_where_they_saturate(
    monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    """With AMX, the other kernels take three times as long."""
    monkeypatch.setattr(sessions, "exact_int8", lambda: exact)
    options = session_options(onnxruntime, 1, True, "int8")
    entry = "session.x64quantprecision"
    if not exact:
        assert options.get_session_config_entry(entry) == "1"
        return
    with pytest.raises(RuntimeError, match="does not have"):
        options.get_session_config_entry(entry)


def test_a_shared_int8_matrix_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("graph.cc:4164 Attempt to replace the existing tensor")

    path = write_int8_plan(tmp_path / "int8.plan")
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with Plan.open(path) as plan, pytest.raises(DisaError, match="quantise the fp32 plan again"):
        OnnxRuntimeSession(plan, "head")


def test_a_session_outlives_its_plan(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        session = OnnxRuntimeSession(plan, "head")
    plan_path.unlink()
    assert session.iterate(*head_loop())["next_x"].shape == (3, 4)


def test_a_plan_may_be_opened_by_any_path(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "spaces and ümlauts"
    folder.mkdir()
    moved = plan_path.rename(folder / "größe (1).plan")
    (tmp_path / "link.plan").symlink_to(moved)
    monkeypatch.chdir(folder)
    for path in (moved, Path(moved.name), tmp_path / "link.plan"):
        with Plan.open(path) as plan:
            OnnxRuntimeSession(plan, "head")


def test_threads_are_as_asked(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        for threads, expected in [(None, physical_cores()), (1, 1), (3, 3)]:
            session = OnnxRuntimeSession(plan, "head", threads=threads)
            options = session._session.get_session_options()
            assert options.intra_op_num_threads == expected


def test_the_description_says_what_runs(plan_path: Path) -> None:
    import onnxruntime

    with Plan.open(plan_path) as plan:
        description = OnnxRuntimeSession(plan, "head").description
    assert description == f"ONNX Runtime {onnxruntime.__version__} CPUExecutionProvider fp32"


def test_bfloat16_on_the_cpu_is_explained(tmp_path: Path) -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], bytes(32), raw=True)
    bf16 = graph(
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
        constants=[weight],
    )
    path = write_plan(tmp_path / "bf16.plan", [bf16], precision="bf16")
    with Plan.open(path) as plan, pytest.raises(DisaError) as caught:
        OnnxRuntimeSession(plan, "head")
    assert str(caught.value) == (
        f"the graph head of {path}: ONNX Runtime cannot compute it in bf16 on this engine: use "
        "--engine openvino or cuda, or export with --fp32"
    )


def test_a_failing_run_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shapes = numpy_helper.from_array(np.array([3, 4]), "shape")
    failing = graph(helper.make_node("Reshape", ["x", "shape"], ["y"]), constants=[shapes])
    greedy = TinyGraph(
        "backbone",
        as_model(
            [
                helper.make_node("ConstantOfShape", ["size"], ["huge"]),
                helper.make_node("Add", ["huge", "x"], ["y"]),
            ],
            [numpy_helper.from_array(np.array([1 << 45, 4]), "size")],
            VECTOR,
            RESULT,
        ).SerializeToString(),
        b"",
        VECTOR,
        RESULT,
    )
    inputs = {"x": np.ones((2, 4), np.float32)}
    with Plan.open(write_plan(tmp_path / "a.plan", [failing, greedy])) as plan:
        with pytest.raises(DisaError, match=r"^the graph head of .*: ONNX Runtime failed: .*"):
            OnnxRuntimeSession(plan, "head").run(inputs)
        with pytest.raises(DisaError, match="not enough memory: use a smaller --batch-size"):
            OnnxRuntimeSession(plan, "backbone").run(inputs)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_graph, r"checksum of graphs/head\.onnx does not match"),
        (cut_weights, "weights beyond the end of head.data"),
        (steal, r"refers to weights in '../secret'.* do not use this plan"),
        (lie, "does not have the inputs and outputs listed in the manifest"),
        (swap_types, "does not have the inputs and outputs listed in the manifest"),
        (not_onnx, "is damaged"),
        (empty, "ONNX Runtime failed"),
    ],
)
def test_plans_not_to_be_trusted(
    plan_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(plan_path)
    with Plan.open(plan_path) as plan, pytest.raises(DisaError, match=message):
        OnnxRuntimeSession(plan, "head")


def test_a_plan_that_is_replaced_before_loading_is_noticed(plan_path: Path, tmp_path: Path) -> None:
    other = write_plan(tmp_path / "other.plan", [backbone(), head()])
    with Plan.open(plan_path) as plan:
        os.replace(other, plan_path)
        with pytest.raises(DisaError, match="was replaced or changed while it was in use"):
            OnnxRuntimeSession(plan, "head")


def test_without_onnxruntime_the_command_that_brings_it_is_named(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with (
        Plan.open(plan_path) as plan,
        pytest.raises(MissingDependency, match=r"pip install 'disa\[cpu\]'"),
    ):
        OnnxRuntimeSession(plan, "head")


def test_a_graph_in_the_format_of_onnx_runtime_is_refused(tmp_path: Path) -> None:
    """Only ONNX is checked for files outside the plan; bytes of both kinds at once can be made."""
    own = onnxruntime.SessionOptions()
    own.optimized_model_filepath = str(tmp_path / "graph.ort")
    own.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    own.add_session_config_entry("session.save_model_format", "ORT")
    onnx = as_model(
        [helper.make_node("Add", ["x", "x"], ["y"])], [], VECTOR, RESULT
    ).SerializeToString()
    onnxruntime.InferenceSession(onnx, own, providers=["CPUExecutionProvider"])
    options = session_options(onnxruntime, 1, False, "fp32")
    onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    converted = (tmp_path / "graph.ort").read_bytes()
    with pytest.raises(Exception, match="protobuf parsing failed"):
        onnxruntime.InferenceSession(converted, options, providers=["CPUExecutionProvider"])
