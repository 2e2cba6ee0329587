"""What only OpenVINO has; what every backend must do is in tests/engines/test_session.py."""

import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from disa.engines.cpu import exact_int8, fast_bfloat16, physical_cores
from disa.engines.openvino import session as sessions
from disa.engines.openvino.session import OpenVINOSession
from disa.engines.ort.session import OnnxRuntimeSession
from disa.engines.plan.plan import Plan
from disa.errors import DisaError, MissingDependency

from ..bad_plans import cut_weights, damage_graph, empty, lie, not_onnx, steal, swap_types
from ..loading_memory import loading_memory
from ..tiny_graphs import (
    INT8_DEPTH,
    RESULT,
    VECTOR,
    External,
    TinyGraph,
    as_model,
    graph,
    head_loop,
    write_int8_plan,
    write_plan,
)

bf16_only = pytest.mark.skipif(not fast_bfloat16(), reason="needs a processor with bf16")


def graph_with_a_table(size: int) -> TinyGraph:
    """A graph that adds a row of a table of `size` bytes."""
    external = External("head.data")
    table = external.add("table", np.full((size // 16, 4), 2, np.float32))
    index = numpy_helper.from_array(np.array([7]), "index")
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["row"]),
        helper.make_node("Add", ["x", "row"], ["y"]),
    ]
    model = as_model(nodes, [table, index], VECTOR, RESULT).SerializeToString()
    return TinyGraph("head", model, external.data, VECTOR, RESULT)


def test_weights_are_not_copied(tmp_path: Path) -> None:
    size = 64 << 20
    small = write_plan(tmp_path / "small.plan", [graph_with_a_table(1 << 20)])
    large = write_plan(tmp_path / "large.plan", [graph_with_a_table(size)])
    assert loading_memory("openvino", small, large) < size / 2
    with Plan.open(large) as plan:
        session = OpenVINOSession(plan, "head", precision="fp32")
    assert session.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[3.0] * 4]


def test_sums_of_int8_products_are_exact_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Plan.open(write_int8_plan(tmp_path / "int8.plan")) as plan:
        if exact_int8():
            session = OpenVINOSession(plan, "head")
            y = session.run({"x": np.full((3, INT8_DEPTH), 127, np.float32)})["y"]
            assert y.tolist() == [[INT8_DEPTH * 127.0**2] * 4] * 3
        monkeypatch.setattr(sessions, "exact_int8", lambda: False)
        with pytest.raises(DisaError, match="no VNNI instructions: use --engine cpu"):
            OpenVINOSession(plan, "head")


def test_a_session_outlives_its_plan(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        session = OpenVINOSession(plan, "head")
    plan_path.unlink()
    assert session.iterate(*head_loop())["next_x"].shape == (3, 4)


def test_the_working_directory_does_not_matter(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "spaces and ümlauts"
    folder.mkdir()
    moved = plan_path.rename(folder / "größe (1).plan")
    for directory, path in [(folder, Path(moved.name)), (Path("/"), moved)]:
        monkeypatch.chdir(directory)
        with Plan.open(path) as plan:
            OpenVINOSession(plan, "head")


def test_threads_are_as_asked(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        for threads, expected in [(None, physical_cores()), (1, 1)]:
            session = OpenVINOSession(plan, "head", threads=threads)
            assert session._model.get_property("INFERENCE_NUM_THREADS") == expected


def test_fp32_is_fp32(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        session = OpenVINOSession(plan, "head", precision="fp32")
    assert session.matmuls() == Counter({"f32": 1})
    assert session.description.endswith("CPU fp32")


@bf16_only
def test_bfloat16_where_the_processor_has_it(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        session = OpenVINOSession(plan, "head")
        carry, *arguments = head_loop(rows=5, steps=6)
        exact = OpenVINOSession(plan, "head", precision="fp32").iterate(carry, *arguments)
    assert session.matmuls() == Counter({"bf16": 1})
    assert session.description.endswith("CPU bf16")
    rounded = session.iterate(carry, *arguments)["next_x"]
    error = np.linalg.norm(rounded - exact["next_x"]) / np.linalg.norm(exact["next_x"])
    assert 1e-5 < error < 3e-2


def test_without_bfloat16_it_computes_in_fp32(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "fast_bfloat16", lambda: False)
    with Plan.open(plan_path) as plan:
        assert OpenVINOSession(plan, "head").description.endswith("CPU fp32")


def test_another_precision_than_asked_for_is_an_error(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [("bf16", "f32"), *([("fp32", "bf16")] if fast_bfloat16() else [])]
    for asked, given in wrong:
        monkeypatch.setitem(sessions._HINTS, asked, given)
        with Plan.open(plan_path) as plan, pytest.raises(DisaError, match=f"not in {asked}: use"):
            OpenVINOSession(plan, "head", precision=asked)
        monkeypatch.undo()


def test_precisions_that_it_does_not_have(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan, pytest.raises(DisaError, match="fp32 or bf16, not in fp16"):
        OpenVINOSession(plan, "head", precision="fp16")


def test_a_failing_run_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shapes = numpy_helper.from_array(np.array([3, 4]), "shape")
    failing = graph(helper.make_node("Reshape", ["x", "shape"], ["y"]), constants=[shapes])
    with Plan.open(write_plan(tmp_path / "a.plan", [failing])) as plan:
        session = OpenVINOSession(plan, "head")
        with pytest.raises(
            DisaError, match=r"^the graph head of .*: OpenVINO failed: .+"
        ) as caught:
            session.run({"x": np.ones((2, 4), np.float32)})
    assert "\n" not in str(caught.value)
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
        (empty, "OpenVINO failed"),
    ],
)
def test_plans_not_to_be_trusted(
    plan_path: Path, harm: Callable[[Path], None], message: str
) -> None:
    harm(plan_path)
    with Plan.open(plan_path) as plan, pytest.raises(DisaError, match=message):
        OpenVINOSession(plan, "head")


def test_without_openvino_the_command_that_brings_it_is_named(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with (
        Plan.open(plan_path) as plan,
        pytest.raises(MissingDependency, match=r"pip install 'disa\[openvino\]'"),
    ):
        OpenVINOSession(plan, "head")


def test_importing_it_reports_to_nobody() -> None:
    code = (
        "import sys; from disa.engines.openvino.package import load; load(); "
        "print([name for name in sys.modules if 'telemetry' in name or 'ovc' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_arrays_live_until_they_are_read(plan_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO reads inputs where they lie and keeps no reference to them."""
    copies: list[weakref.ref[np.ndarray]] = []

    def copied(values: np.ndarray) -> np.ndarray:
        copy = np.array(values)
        copies.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(sessions, "_shareable", copied)
    carry, constants, per_step, state = head_loop()
    with Plan.open(plan_path) as plan:
        session = OpenVINOSession(plan, "head")
    request = session._request

    class Checked:
        def infer(self) -> None:
            assert all(copy() is not None for copy in copies)
            request.infer()

        def __getattr__(self, name: str) -> object:
            return getattr(request, name)

    session._request = Checked()
    session.run({**constants, **state, **{name: values[0] for name, values in per_step.items()}})
    copies.clear()
    session.iterate(carry, constants, per_step, state)
    assert len(copies) == 3


def test_results_do_not_depend_on_the_shapes_before(golden_plan: Callable[..., Path]) -> None:
    """Fused attention over one token must leave nothing behind for 16, the channels of a head."""
    rng = np.random.default_rng(0)
    with Plan.open(golden_plan("flowar_s")) as plan:
        session = OpenVINOSession(plan, "head", precision="fp32")
        expected = OnnxRuntimeSession(plan, "head")
    for tokens in (1, 16, 4, 1, 2, 16):
        sizes = {"tokens": tokens, "guidance": 2, "batch": 2, "steps": 5}
        inputs = {}
        for spec in session.inputs:
            shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
            values = rng.standard_normal(shape).astype(np.float32)
            inputs[spec.name] = values if spec.dtype == "float32" else np.zeros(shape, np.int64)
        found, wanted = (each.run(inputs)["next_x"] for each in (session, expected))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@bf16_only
def test_angles_stay_in_fp32(tmp_path: Path) -> None:
    """The sine of a number that bf16 cannot tell from its neighbours, before a product."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "weight")
    nodes = [
        helper.make_node("Sin", ["x"], ["sine"]),
        helper.make_node("MatMul", ["sine", "weight"], ["y"]),
    ]
    x = np.array([[1001.0, 1002.0, 1003.0, 1005.0]], np.float32)
    with Plan.open(write_plan(tmp_path / "a.plan", [graph(*nodes, constants=[weight])])) as plan:
        session = OpenVINOSession(plan, "head")
    assert session.matmuls() == Counter({"bf16": 1})
    np.testing.assert_allclose(session.run({"x": x})["y"], np.sin(x), atol=1e-2)


def test_whole_numbers_that_it_would_mix_up_are_refused(tmp_path: Path) -> None:
    large = numpy_helper.from_array(np.array([2**30, 2**30 + 1]), "large")
    nodes = [
        helper.make_node("Less", ["large", "large"], ["less"]),
        helper.make_node("Cast", ["less"], ["zero"], to=1),
        helper.make_node("ReduceSum", ["zero"], ["none"], keepdims=0),
        helper.make_node("Add", ["x", "none"], ["y"]),
    ]
    path = write_plan(tmp_path / "a.plan", [graph(*nodes, constants=[large])])
    with Plan.open(path) as plan, pytest.raises(DisaError, match=r"integers beyond 2\*\*24"):
        OpenVINOSession(plan, "head")
