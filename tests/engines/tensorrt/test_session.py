from pathlib import Path

import numpy as np
import pytest

from disa.engines.gpu import loop
from disa.engines.gpu.array import DeviceArray
from disa.engines.gpu.profile import MAX_TABLE, Range
from disa.engines.gpu.shared import SharedGpu
from disa.engines.ort.session import OnnxRuntimeSession
from disa.engines.plan.plan import Plan
from disa.engines.tensorrt.load import Host, open_engine
from disa.engines.tensorrt.session import TensorRTSession
from disa.errors import DisaError, EngineError

from ..gpu.fake_device import FakeDevice
from .fake_tensorrt import Context, fake_flavour
from .graphs import TOKENS, backbone_arrays, head_arrays, write_plan

CARRY = {"next_x": "x"}
BACKENDS = pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])


class Bench:
    """A plan with fake engines, and the same graphs on ONNX Runtime."""

    def __init__(self, folder: Path, backend: str, batch: Range | None = None) -> None:
        self.plan = Plan.open(write_plan(folder / "p.plan", backend=backend, batch=batch))
        self.device = FakeDevice()
        self.flavour = fake_flavour(self.device, backend == "tensorrt-rtx")
        self.host = Host(lambda name: self.flavour, SharedGpu(lambda: self.device))
        self.backend = backend

    def open(self, graph: str) -> TensorRTSession:
        return open_engine(self.plan, graph, self.backend, self.host)

    def reference(self, graph: str) -> OnnxRuntimeSession:
        return OnnxRuntimeSession(self.plan, graph, threads=1)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(tmp_path, request.param)


def same(found: object, expected: object) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("visible", [0, 1, 7])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_run_is_what_onnx_runtime_computes(bench: Bench, batch: int, visible: int) -> None:
    inputs = backbone_arrays(batch, visible, 3)
    found = bench.open("backbone").run(inputs)
    expected = bench.reference("backbone").run(inputs)
    assert found["condition"].shape == (2, 3 * batch, 8)
    same(found["condition"], expected["condition"])


def test_larger_batches_are_cut_and_put_together_token_major(bench: Bench) -> None:
    inputs = backbone_arrays(11, 5, 3)
    found = bench.open("backbone").run(inputs)
    same(found["condition"], bench.reference("backbone").run(inputs)["condition"])
    assert bench.flavour.trt.executions == 3


def test_several_outputs_are_put_together(bench: Bench) -> None:
    arrays = backbone_arrays(9, TOKENS, 0)
    inputs = {name: arrays[name] for name in ("tokens", "positions")}
    session = bench.open("decoder")
    expected = bench.reference("decoder").run(inputs)
    for given in (
        inputs,
        {name: session.stream.put(array) for name, array in inputs.items()},
    ):
        found = session.run(given)
        for name in ("latents", "image"):
            same(found[name], expected[name])


def test_smaller_batches_than_the_profile_are_padded(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "tensorrt", Range(4, 4, 4))
    inputs = backbone_arrays(3, 5, 2)
    found = bench.open("backbone").run(inputs)
    same(found["condition"], bench.reference("backbone").run(inputs)["condition"])


@pytest.mark.parametrize("rows", [1, 3, 8, 13])
def test_iterate_is_what_onnx_runtime_computes(bench: Bench, rows: int) -> None:
    arrays = head_arrays(rows, 5)
    session = bench.open("head")
    expected = bench.reference("head").iterate(CARRY, *arrays)
    for _ in range(4):
        found = session.iterate(CARRY, *arrays)
        same(found["next_x"], expected["next_x"])


def test_iterate_takes_what_is_on_the_device(bench: Bench) -> None:
    session = bench.open("head")
    for rows, steps in ((3, 5), (3, 4), (13, 5), (3, 5), (3, 5)):
        constants, per_step, state = head_arrays(rows, steps, seed=rows)
        expected = bench.reference("head").iterate(CARRY, constants, per_step, state)
        constants["condition"] = session.stream.put(constants["condition"])
        constants["embedding"] = session.stream.put(constants["embedding"])
        per_step["step"] = session.stream.put(per_step["step"])
        state["x"] = session.stream.put(state["x"])
        before = np.asarray(state["x"])
        found = session.iterate(CARRY, constants, per_step, state)
        same(found["next_x"], expected["next_x"])
        same(state["x"], before)


def test_more_rows_than_the_profile_has_are_cut(bench: Bench) -> None:
    arrays = head_arrays(150, 3)
    assert bench.open("head").ranges["rows"].maximum == 64
    expected = bench.reference("head").iterate(CARRY, *arrays)
    session = bench.open("head")
    for _ in range(2):
        same(session.iterate(CARRY, *arrays)["next_x"], expected["next_x"])
    assert session.loop is not None
    counts = session.loop.counts
    # Three parts of 50 rows each time: the second part finds the shapes of the first.
    assert counts.enqueued == (3 if bench.backend == "tensorrt" else 18)
    assert counts.launched == (5 if bench.backend == "tensorrt" else 0)


def test_no_steps_give_the_state_back(bench: Bench) -> None:
    constants, per_step, state = head_arrays(3, 2)
    empty = {name: array[:0] for name, array in per_step.items()}
    found = bench.open("head").iterate(CARRY, constants, empty, state)
    same(found["next_x"], state["x"])


def test_steps_become_one_graph_that_is_replayed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "tensorrt")
    session = bench.open("head")
    for seed in range(5):
        # 5, 6 and 7 rows stand on the same rung of the ladder.
        arrays = head_arrays(5 + seed % 3, 6, seed=seed)
        expected = bench.reference("head").iterate(CARRY, *arrays)
        same(session.iterate(CARRY, *arrays)["next_x"], expected["next_x"])
    assert session.loop is not None
    counts = session.loop.counts
    assert (counts.enqueued, counts.captured, counts.launched) == (6, 1, 4)
    assert bench.device.launches == 4


def test_graphs_of_other_shapes_stay_valid(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "tensorrt")
    session = bench.open("head")
    for turn in range(3):
        for rows, steps, guidance in ((2, 3, 2), (40, 6, 2), (2, 4, 2), (2, 3, 1)):
            arrays = head_arrays(rows, steps, guidance, seed=turn)
            expected = bench.reference("head").iterate(CARRY, *arrays)
            same(session.iterate(CARRY, *arrays)["next_x"], expected["next_x"])
    assert session.loop is not None
    assert session.loop.counts.captured == 4
    assert session.loop.counts.launched == 8


def test_growing_memory_forgets_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LEAST_MEMORY", 1)
    bench = Bench(tmp_path, "tensorrt")
    session = bench.open("head")
    small, large = head_arrays(2, 3), head_arrays(64, 50)
    counts = []
    for arrays in (small, small, large, small, large):
        expected = bench.reference("head").iterate(CARRY, *arrays)
        same(session.iterate(CARRY, *arrays)["next_x"], expected["next_x"])
        assert session.loop is not None
        counts.append((session.loop.counts.captured, bench.device.graphs))
    assert counts == [(0, 0), (1, 1), (1, 0), (2, 1), (3, 2)]


@pytest.mark.parametrize("limit", ["MAX_CONTEXTS", "MAX_GRAPHS"])
def test_old_graphs_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(loop, limit, 2)
    bench = Bench(tmp_path, "tensorrt")
    session = bench.open("head")
    for rows in (1, 1, 2, 2, 4, 4, 1, 1):
        arrays = head_arrays(rows, 3)
        expected = bench.reference("head").iterate(CARRY, *arrays)
        same(session.iterate(CARRY, *arrays)["next_x"], expected["next_x"])
    assert 1 <= bench.device.graphs <= 2


def test_a_context_goes_when_its_work_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "MAX_CONTEXTS", 1)
    bench = Bench(tmp_path, "tensorrt")
    session = bench.open("head")
    session.iterate(CARRY, *head_arrays(1, 3))
    waits = bench.device.waits
    session.iterate(CARRY, *head_arrays(1, 3))
    assert bench.device.waits == waits
    session.iterate(CARRY, *head_arrays(2, 3))
    assert bench.device.waits == waits + 1


def test_without_graphs_the_result_is_the_same(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "tensorrt")
    arrays = head_arrays(5, 6)
    results = []
    for use_graphs in (True, False):
        session = bench.open("head")
        session.iterate(CARRY, *arrays)
        assert session.loop is not None
        session.loop.use_graphs = use_graphs
        results.append(np.asarray(session.iterate(CARRY, *arrays)["next_x"]))
    np.testing.assert_array_equal(*results)


def test_a_capture_that_fails_is_told_and_done_without(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "tensorrt")
    session = bench.open("head")
    arrays = head_arrays(5, 6)
    expected = bench.reference("head").iterate(CARRY, *arrays)
    end_capture = bench.device.end_capture

    def fail(stream: object) -> object:
        bench.device.capture_fails = True
        return end_capture(stream)

    bench.device.end_capture = fail  # type: ignore[method-assign]
    for _ in range(3):
        same(session.iterate(CARRY, *arrays)["next_x"], expected["next_x"])
    assert session.loop is not None
    assert "901" in session.loop.graphs_failed
    assert "no CUDA graphs (CUDA failed" in session.description
    assert session.loop.counts.enqueued == 18


def test_rtx_makes_the_graphs_and_sees_the_same_addresses(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "tensorrt-rtx")
    session = bench.open("head")
    session.iterate(CARRY, *head_arrays(8, 50))
    engine = session.engine.loaded
    (context,) = engine.contexts
    changes = context.address_changes
    assert changes == len(session.inputs) + len(session.outputs)
    for steps in (50, 20, 5):
        session.iterate(CARRY, *head_arrays(7, steps))
    assert context.address_changes == changes
    assert engine.configs[0].cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert bench.device.launches == 0


def test_one_run_is_not_captured_by_rtx(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "tensorrt-rtx")
    session = bench.open("backbone")
    session.run(backbone_arrays(1, 3, 2))
    assert session.engine.loaded.configs[0].cuda_graph_strategy.name == "DISABLED"


def test_an_iteration_uploads_once_and_never_waits(bench: Bench) -> None:
    backbone, head = bench.open("backbone"), bench.open("head")
    assert backbone.stream is head.stream
    first = backbone_arrays(2, 3, 2)
    constants, per_step, state = head_arrays(4, 10)
    for _ in range(3):
        condition = backbone.run(first)["condition"]
        bench.device.uploads.clear()
        waits = bench.device.waits
        found = head.iterate(CARRY, {**constants, "condition": condition}, per_step, state)
        assert len(bench.device.uploads) == 1
        assert bench.device.waits == waits
    given = bench.reference("backbone").run(first)
    expected = bench.reference("head").iterate(CARRY, {**constants, **given}, per_step, state)
    same(found["next_x"], expected["next_x"])


def test_many_uploads_ahead_of_the_device(bench: Bench) -> None:
    session = bench.open("decoder")
    arrays = [np.full((3, 5), n, np.float32) for n in range(100)]
    found = [session.stream.put(array) for array in arrays]
    for array in arrays:
        array[:] = -1
    for n, array in enumerate(found):
        assert (np.asarray(array) == n).all()


def test_all_memory_is_given_back(bench: Bench) -> None:
    session = bench.open("decoder")
    stream = session.stream
    arrays = backbone_arrays(6, TOKENS, 0)
    for _ in range(3):
        session.run({name: arrays[name] for name in ("tokens", "positions")})
    stream.synchronize()
    alive = [r for r in bench.device.regions.values() if r.alive]
    # Only the memory that contexts of full TensorRT work in.
    assert len(alive) == (1 if bench.backend == "tensorrt" else 0)


def test_memory_is_given_back_after_a_capture(bench: Bench) -> None:
    stream = bench.open("head").stream
    kept = [stream.empty((4,), np.float32)]
    with stream.capture() as graphs:
        stream.copy(kept[0].address, kept[0].address, 16)
        address = kept.pop().address
    assert len(graphs) == 1
    stream.empty((1,), np.float32)
    stream.synchronize()
    assert not bench.device.regions[address].alive


def test_a_view_that_is_not_aligned_is_copied(bench: Bench) -> None:
    session = bench.open("decoder")
    arrays = backbone_arrays(2, TOKENS, 0)
    longer = np.concatenate([np.zeros((1, 2, 4), np.float32), arrays["tokens"]])
    tokens = session.stream.put(longer)[1:]
    found = session.run({"tokens": tokens, "positions": arrays["positions"]})
    expected = bench.reference("decoder").run(
        {"tokens": arrays["tokens"], "positions": arrays["positions"]}
    )
    same(found["latents"], expected["latents"])


def test_arrays_of_another_stream_are_taken(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other", "tensorrt")
    arrays = backbone_arrays(2, TOKENS, 0)
    inputs = {name: arrays[name] for name in ("tokens", "positions")}
    foreign = {name: other.open("decoder").stream.put(array) for name, array in inputs.items()}
    found = bench.open("decoder").run(foreign)
    same(found["latents"], bench.reference("decoder").run(inputs)["latents"])


@BACKENDS
def test_a_table_that_is_too_long_is_refused(backend: str, tmp_path: Path) -> None:
    session = Bench(tmp_path, backend).open("head")
    with pytest.raises(
        DisaError, match=f"1 to {MAX_TABLE} steps, and the request has {MAX_TABLE + 1}"
    ):
        session.iterate(CARRY, *head_arrays(1, MAX_TABLE + 1))


def test_wrong_inputs_are_told(bench: Bench) -> None:
    session = bench.open("decoder")
    arrays = backbone_arrays(2, TOKENS, 0)
    good = {name: arrays[name] for name in ("tokens", "positions")}
    with pytest.raises(DisaError, match="positions"):
        session.run({"tokens": good["tokens"]})
    with pytest.raises(DisaError, match="type float64"):
        session.run({**good, "tokens": good["tokens"].astype(np.float64)})
    with pytest.raises(DisaError, match="shape"):
        session.run({**good, "tokens": good["tokens"][1:]})
    with pytest.raises(DisaError, match="empty batch"):
        session.run({name: array[:, :0] for name, array in good.items()})


def test_an_engine_that_fails_says_why(bench: Bench) -> None:
    session = bench.open("decoder")
    arrays = backbone_arrays(2, TOKENS, 0)
    inputs = {name: arrays[name] for name in ("tokens", "positions")}
    session.run(inputs)

    def fail(stream: object) -> bool:
        bench.flavour.trt.complain("an illegal memory access")
        return False

    session.engine.loaded.contexts[0].execute_async_v3 = fail
    with pytest.raises(DisaError, match="failed to run: an illegal memory access"):
        session.run(inputs)


@pytest.mark.parametrize("call", ["infer_shapes", "set_optimization_profile_async"])
def test_exceptions_of_the_bindings_say_why(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object) -> None:
        bench.flavour.trt.complain("the shapes contradict")
        raise RuntimeError("error code: -1")

    monkeypatch.setattr(Context, call, fail)
    with pytest.raises(EngineError, match="the shapes contradict"):
        bench.open("backbone").run(backbone_arrays(1, 3, 2))


def test_description_names_what_runs(bench: Bench) -> None:
    assert bench.open("head").description == f"{bench.flavour} fp32 on Fake GPU"


def test_empty_gives_device_arrays(bench: Bench) -> None:
    array = bench.open("head").empty((2, 3), np.int64)
    assert isinstance(array, DeviceArray)
    assert (array.shape, array.dtype) == ((2, 3), np.int64)


@pytest.mark.parametrize("on_device", [True, False])
def test_a_slice_along_a_later_axis_can_be_set(bench: Bench, on_device: bool) -> None:
    stream = bench.open("head").stream
    whole = np.arange(2 * 3 * 5 * 4, dtype=np.float32).reshape(2, 3, 5, 4)
    part = -np.ones((2, 3, 2, 4), np.float32)
    array = stream.put(whole)
    array[:, :, 1:3] = stream.put(part) if on_device else part
    whole[:, :, 1:3] = part
    np.testing.assert_array_equal(np.asarray(array), whole)
    array[:, :, 5:] = part[:, :, :0]
    np.testing.assert_array_equal(np.asarray(array), whole)
    with pytest.raises(DisaError, match=r"shape \(2, 3, 1, 4\) .* cannot be set to one of shape"):
        array[:, :, :1] = part
    with pytest.raises(DisaError, match="one slice of consecutive indices"):
        array[:1, :, 1:3] = part[:1]


def test_no_memory_for_a_context_is_told(bench: Bench) -> None:
    session = bench.open("decoder")

    def refuse(how: object = None) -> None:
        bench.flavour.trt.complain("out of memory")

    session.engine.loaded.create_execution_context = refuse
    arrays = backbone_arrays(2, TOKENS, 0)
    with pytest.raises(DisaError, match=r"to run this graph \(out of memory\)"):
        session.run({name: arrays[name] for name in ("tokens", "positions")})
