from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from disa.calibration.quantization.graph_session import GraphSession, RangeSession
from disa.engines.plan.manifest import GraphInfo
from disa.engines.plan.traits import GraphTraits, Role
from disa.engines.session import TensorSpec
from disa.errors import DisaError

INFO = GraphInfo(
    "head",
    "graphs/head.onnx",
    (),
    (TensorSpec("x", "float32", (2,)), TensorSpec("noise", "float32", (2,))),
    (TensorSpec("next_x", "float32", (2,)),),
    GraphTraits(Role.ONCE),
)


def adding() -> bytes:
    """next_x = -(-x) + noise."""
    x, noise, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])
        for name in ("x", "noise", "next_x")
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["negative"]),
        helper.make_node("Sub", ["noise", "negative"], ["next_x"]),
    ]
    graph = helper.make_graph(nodes, "head", [x, noise], [result])
    graph.output.add().name = "negative"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def loop(session: RangeSession, steps: int) -> np.ndarray:
    noise = np.repeat(np.arange(1, steps + 1, dtype=np.float32)[:, None], 2, axis=1)
    state = {"x": np.zeros(2, np.float32)}
    return np.asarray(session.iterate({"next_x": "x"}, {}, {"noise": noise}, state)["next_x"])


def test_a_few_steps_of_a_loop_are_counted_later_ones_in_the_next(tmp_path: Path) -> None:
    session = RangeSession(INFO, adding(), tmp_path, ["noise", "negative"], 1)
    noise, negative = session.magnitudes["noise"], session.magnitudes["negative"]
    np.testing.assert_array_equal(loop(session, 8), 36)
    assert (noise.counts.sum(), noise.largest) == (4 * 2, 7)
    assert negative.largest == sum(range(1, 7))
    loop(session, 8)
    assert (noise.counts.sum(), noise.largest) == (8 * 2, 8)
    loop(session, 3)
    assert noise.counts.sum() == 11 * 2
    session.run({"x": np.ones(2, np.float32), "noise": np.full(2, 50, np.float32)})
    assert noise.largest == 50


def test_nothing_is_counted_once_it_stops_watching(tmp_path: Path) -> None:
    session = RangeSession(INFO, adding(), tmp_path, ["noise"], 1)
    session.watching = False
    np.testing.assert_array_equal(loop(session, 4), 10)
    assert list(session.run({"x": np.ones(2, np.float32), "noise": np.ones(2, np.float32)})) == [
        "next_x"
    ]
    assert not session.magnitudes["noise"].seen


def test_what_the_engine_refuses_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="the graph head: ONNX Runtime failed"):
        GraphSession(INFO, b"no model", tmp_path)
    session = GraphSession(INFO, adding(), tmp_path, threads=1)
    with pytest.raises(DisaError, match="the graph head: ONNX Runtime failed"):
        session.run({"x": np.ones(3, np.float32), "noise": np.ones(2, np.float32)})
