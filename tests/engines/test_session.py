"""What every backend must do alike."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from disa.engines.open import open_session
from disa.engines.ort.session import OnnxRuntimeSession, provider_runs
from disa.engines.plan.plan import Plan
from disa.engines.session import Session, iterate_by_run
from disa.errors import DisaError

from .fake_onnxruntime import use_fake_gpu
from .tiny_graphs import CHANNELS, expected_backbone, expected_head, expected_loop, head_loop

Open = Callable[[str], Session]

# "device" is the path of GPUs, on a fake one. A real one is added where it runs.
BACKENDS = ["cpu", "unpacked", "openvino", "device", *(["cuda"] if provider_runs("cuda") else [])]
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=BACKENDS)
def load(
    request: pytest.FixtureRequest, plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens a graph of the tiny plan on a backend."""
    if request.param == "device":
        use_fake_gpu(monkeypatch)
    prepack = request.param != "unpacked"
    with Plan.open(plan_path) as plan:
        if request.param == "device":
            yield lambda graph: OnnxRuntimeSession(plan, graph, "device")
        else:
            engine = request.param if prepack else "cpu"
            yield lambda graph: open_session(plan, graph, engine, precision="fp32", prepack=prepack)


def test_a_run_computes_the_graph(load: Open) -> None:
    _, constants, per_step, state = head_loop(rows=5)
    inputs = {**constants, **state, **{name: values[0] for name, values in per_step.items()}}
    outputs = load("head").run(inputs)
    np.testing.assert_allclose(np.asarray(outputs["next_x"]), expected_head(inputs), **TOLERANCE)


@pytest.mark.parametrize("visible", [0, 1, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_sizes_may_differ_from_run_to_run(load: Open, visible: int, batch: int) -> None:
    inputs = {
        "tokens": np.random.default_rng(1).random((visible, batch, CHANNELS), np.float32),
        "class_index": np.arange(2 * batch).reshape(2, batch) % 3,
    }
    session = load("backbone")
    for _ in range(2):
        outputs = session.run(inputs)
        condition = np.asarray(outputs["condition"])
        np.testing.assert_allclose(condition, expected_backbone(inputs), **TOLERANCE)
        assert np.asarray(outputs["visible"]).tolist() == [visible]
        inputs = {"tokens": inputs["tokens"][:, :1], "class_index": inputs["class_index"][:1, :1]}


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_loop_carries_its_state(load: Open, rows: int, steps: int) -> None:
    carry, *arguments = head_loop(rows, steps)
    session = load("head")
    before = arguments[2]["x"].copy()
    outputs = session.iterate(carry, *arguments)
    assert outputs.keys() == {"next_x"}
    np.testing.assert_allclose(
        np.asarray(outputs["next_x"]), expected_loop(*arguments), **TOLERANCE
    )
    np.testing.assert_array_equal(arguments[2]["x"], before)


def test_a_loop_equals_single_runs(load: Open) -> None:
    arguments = head_loop(rows=4, steps=6)
    session = load("head")
    looped = np.asarray(session.iterate(*arguments)["next_x"])
    np.testing.assert_array_equal(looped, np.asarray(iterate_by_run(session, *arguments)["next_x"]))


def test_a_step_does_not_write_over_what_it_reads(load: Open) -> None:
    order = np.array([[3, 2, 0, 1], [1, 2, 3, 0], [2, 0, 3, 1]])
    x = np.arange(4 * CHANNELS, dtype=np.float32).reshape(4, CHANNELS)
    outputs = load("shuffle").iterate({"next_x": "x"}, {}, {"order": order}, {"x": x})
    np.testing.assert_array_equal(np.asarray(outputs["next_x"]), x[order[0]][order[1]][order[2]])


def test_results_of_earlier_calls_stay(load: Open) -> None:
    session = load("head")
    first = session.iterate(*head_loop(seed=1))["next_x"]
    kept = np.array(np.asarray(first))
    session.iterate(*head_loop(seed=2))
    np.testing.assert_array_equal(np.asarray(first), kept)


def test_a_loop_of_no_steps_returns_its_state(load: Open) -> None:
    carry, constants, per_step, state = head_loop(steps=0)
    outputs = load("head").iterate(carry, constants, per_step, state)
    np.testing.assert_array_equal(np.asarray(outputs["next_x"]), state["x"])


def test_what_comes_out_goes_in_again(load: Open) -> None:
    """A token loop keeps tokens where the session does, and appends rows in place."""
    session = load("backbone")
    tokens = session.empty((4, 2, CHANNELS), np.float32)
    fresh = np.random.default_rng(2).random((3, 2, CHANNELS), np.float32)
    tokens[0:1] = fresh[:1]
    tokens[1:3] = fresh[1:]
    classes = np.array([[0, 2]])
    outputs = session.run({"tokens": tokens[:3], "class_index": classes})
    np.testing.assert_allclose(
        np.asarray(outputs["condition"]),
        expected_backbone({"tokens": fresh, "class_index": classes}),
        **TOLERANCE,
    )
    tokens[3:4] = outputs["condition"].reshape(1, 2, CHANNELS)
    np.testing.assert_array_equal(np.asarray(tokens)[3:4], np.asarray(outputs["condition"]))
    again = session.run({"tokens": tokens[2:], "class_index": classes})
    assert again["condition"].shape == (1, 2, CHANNELS)
    assert len(again["condition"]) == 1


def test_the_state_of_a_loop_may_come_from_a_session(load: Open) -> None:
    carry, *arguments = head_loop(steps=3)
    session = load("head")
    first = session.iterate(carry, *arguments)["next_x"]
    second = session.iterate(carry, arguments[0], arguments[1], {"x": first})["next_x"]
    twice = expected_loop(arguments[0], arguments[1], {"x": expected_loop(*arguments)})
    np.testing.assert_allclose(np.asarray(second), twice, rtol=1e-4, atol=1e-4)


def test_inputs_in_pieces_are_taken(load: Open) -> None:
    inputs = {
        "tokens": np.ones((6, 4, CHANNELS), np.float32)[::2, ::2],
        "class_index": np.arange(8).reshape(4, 2).T[:, ::2] % 3,
    }
    condition = np.asarray(load("backbone").run(inputs)["condition"])
    np.testing.assert_allclose(condition, expected_backbone(inputs), **TOLERANCE)


def test_the_description_names_what_runs(load: Open) -> None:
    assert re.fullmatch(
        r"ONNX Runtime [\d.]+ \w+ExecutionProvider fp32(, .*)?|OpenVINO [\d.]+ CPU fp32",
        load("head").description,
    )


def _inputs(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    inputs: dict[str, np.ndarray | None] = {
        "tokens": np.zeros((2, 3, CHANNELS), np.float32),
        "class_index": np.zeros((1, 3), np.int64),
    }
    inputs |= changes
    return {name: values for name, values in inputs.items() if values is not None}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_inputs(class_index=None), "class_index.* is missing: the inputs are tokens"),
        (_inputs(more=np.zeros(1)), "no input named more"),
        (_inputs(tokens=np.zeros((2, 3, CHANNELS))), "tokens.* of type float64"),
        (_inputs(class_index=np.zeros((1, 3), np.int32)), "class_index.* of type int32"),
        (_inputs(tokens=np.zeros((3, CHANNELS), np.float32)), r"tokens.* of shape \(3, 4\)"),
        (_inputs(tokens=np.zeros((2, 3, 5), np.float32)), r"tokens.* of shape \(2, 3, 5\)"),
        (_inputs(class_index=np.zeros((1, 2), np.int64)), r"shape \(1, 2\), where batch is 3"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    load: Open, inputs: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(DisaError, match=message):
        load("backbone").run(inputs)


def test_loops_that_do_not_fit_are_refused(load: Open) -> None:
    session = load("head")
    carry, constants, per_step, state = head_loop()
    uneven = {**per_step, "noise": per_step["noise"][:2]}
    for arguments, message in [
        ((carry, constants, uneven, state), "step 4, noise 2"),
        ((carry, {**constants, **per_step}, {}, state), "same number of steps"),
        (({"x": "next_x"}, constants, per_step, state), "cannot carry x to next_x"),
        (({}, constants, per_step, state), "cannot carry nothing to nothing"),
        (({"next_x": "coefficients"}, constants, per_step, state), "cannot carry"),
        ((carry, {**constants, **state}, per_step, state), "an input twice"),
        ((carry, {}, per_step, state), "coefficients.* is missing"),
        ((carry, constants, {**per_step, "step": per_step["noise"]}, state), "type float32"),
    ]:
        with pytest.raises(DisaError, match=message):
            session.iterate(*arguments)
