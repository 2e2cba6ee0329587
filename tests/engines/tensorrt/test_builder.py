"""Real builds with TensorRT-RTX, which needs no GPU for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from disa.engines.gpu.profile import Range, dimensions, graph_profile
from disa.engines.plan.engine_info import ShapeRange
from disa.engines.plan.plan import Plan
from disa.engines.session import TensorSpec
from disa.engines.tensorrt import builder
from disa.engines.tensorrt.build import unpacked
from disa.engines.tensorrt.builder import BuildOptions, Source, build, check_targets
from disa.engines.tensorrt.flavour import Flavour, load
from disa.engines.tensorrt.logger import logger_of
from disa.errors import DisaError

from ..gpu.fake_device import FakeDevice
from .fake_tensorrt import fake_flavour
from .graphs import GRAPHS, write_plan

TARGETS = (80, 86, 89, 120)


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    return load("tensorrt-rtx")


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Plan]:
    opened: dict[str, Plan] = {}

    def plan(precision: str) -> Plan:
        if precision not in opened:
            folder = tmp_path_factory.mktemp(precision)
            opened[precision] = Plan.open(write_plan(folder / "p.plan", precision))
        return opened[precision]

    return plan


def source_of(plan: Plan, graph: str, path: Path, **changes: Any) -> Source:
    info, manifest = plan.graph(graph), plan.manifest
    ranges = dimensions(manifest.tokens, manifest.defaults, Range(1, 2, 4))
    profile = graph_profile(graph, info.inputs, ranges)
    content = {
        "name": graph,
        "path": path,
        "precision": manifest.precision,
        "inputs": info.inputs,
        "outputs": info.outputs,
        "profile": profile,
    }
    return Source(**{**content, **changes})


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_graph_builds_for_every_architecture(
    rtx: Flavour, plans: Callable[[str], Plan], graph: str, precision: str
) -> None:
    plan, shares = plans(precision), list[float]()
    with unpacked(plan, plan.graph(graph)) as path:
        built = build(rtx, source_of(plan, graph, path), BuildOptions(TARGETS), None, shares.append)
    assert len(memoryview(built.data)) > 1000
    assert shares == sorted(shares)
    assert (len(shares) > 10, shares[-1]) == (True, 1.0)
    assert built.memory["weights"] >= 0
    assert "activations" in built.memory


@pytest.mark.parametrize("target", TARGETS)
def test_each_architecture_by_itself(
    rtx: Flavour, plans: Callable[[str], Plan], target: int
) -> None:
    plan = plans("fp16")
    with unpacked(plan, plan.graph("head")) as path:
        built = build(rtx, source_of(plan, "head", path), BuildOptions((target,)))
    assert len(memoryview(built.data)) > 1000


def test_an_engine_cannot_be_opened_without_a_gpu_and_says_so(
    rtx: Flavour, plans: Callable[[str], Plan]
) -> None:
    plan = plans("fp16")
    with unpacked(plan, plan.graph("decoder")) as path:
        built = build(rtx, source_of(plan, "decoder", path), BuildOptions((89,)))
    runtime = rtx.trt.Runtime(logger_of(rtx.trt))
    assert rtx.validity(runtime, memoryview(built.data)) == "no reason given"
    assert rtx.validity(runtime, memoryview(b"x" * 64)) == "malformed engine"


def test_hopper_is_refused_before_anything_is_done(rtx: Flavour) -> None:
    with pytest.raises(DisaError) as raised:
        check_targets(rtx, (89, 90), "fp16")
    assert f"{rtx} cannot build for sm_90, only for sm_75, sm_80" in str(raised.value)
    assert "--engine onnxruntime" in str(raised.value)


@pytest.mark.parametrize(
    ("precision", "target", "least"),
    [("fp32", 75, 80), ("bf16", 75, 80), ("fp8", 86, 89), ("fp4", 89, 120)],
)
def test_architectures_without_the_precision(
    rtx: Flavour, precision: str, target: int, least: int
) -> None:
    with pytest.raises(DisaError, match=f"sm_{target} does not compute in {precision}.*sm_{least}"):
        check_targets(rtx, (target,), precision)
    check_targets(rtx, (least,), precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tensorrt_rtx_itself_refuses_turing(
    rtx: Flavour, plans: Callable[[str], Plan], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(builder.LEAST_SM, precision, 75)
    plan = plans(precision)
    with (
        unpacked(plan, plan.graph("head")) as path,
        pytest.raises(DisaError, match=r"head could not be built: .*[Ss][Mm]75"),
    ):
        build(rtx, source_of(plan, "head", path), BuildOptions((75,)))


def test_too_little_workspace_is_called_so(rtx: Flavour, plans: Callable[[str], Plan]) -> None:
    plan = plans("fp16")
    with (
        unpacked(plan, plan.graph("head")) as path,
        pytest.raises(DisaError, match="more workspace than 0 MiB: give more with --workspace"),
    ):
        build(rtx, source_of(plan, "head", path), BuildOptions((89,), workspace=1))


def test_level_and_workspace_are_taken(rtx: Flavour, plans: Callable[[str], Plan]) -> None:
    plan = plans("fp16")
    options = BuildOptions((89,), workspace=1 << 28, optimization_level=0)
    with unpacked(plan, plan.graph("head")) as path:
        assert build(rtx, source_of(plan, "head", path), options).data is not None


def test_what_tensorrt_cannot_read(rtx: Flavour, tmp_path: Path) -> None:
    specs = (TensorSpec("x", "float32", ("rows", 4)),), (TensorSpec("y", "float32", ("rows", 4)),)
    values = [
        [helper.make_tensor_value_info(s.name, TensorProto.FLOAT, s.shape) for s in side]
        for side in specs
    ]
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], name="odd")
    graph = helper.make_graph([node], "g", *values)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "g.onnx")
    source = Source("odd one", tmp_path / "g.onnx", "fp32", *specs, {})
    with pytest.raises(DisaError, match="cannot read the graph odd one: NoSuchOperator odd: "):
        build(rtx, source, BuildOptions((89,)))
    (tmp_path / "g.onnx").write_bytes(b"nothing")
    with pytest.raises(DisaError, match="cannot read the graph odd one"):
        build(rtx, source, BuildOptions((89,)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"inputs": ()}, "has the inputs x, condition"),
        ({"outputs": (TensorSpec("z", "float32", ("rows", 4)),)}, "has the outputs next_x, but"),
        ({"outputs": (TensorSpec("next_x", "int64", ("rows", 4)),)}, "output next_x .* float32"),
        ({"outputs": (TensorSpec("next_x", "float32", ("rows", 5)),)}, "output next_x"),
        ({"outputs": (TensorSpec("next_x", "float32", ("rows",)),)}, "output next_x"),
    ],
)
def test_a_graph_that_is_not_what_the_plan_says(
    rtx: Flavour, plans: Callable[[str], Plan], changes: dict[str, Any], text: str
) -> None:
    plan = plans("fp32")
    with unpacked(plan, plan.graph("head")) as path, pytest.raises(DisaError, match=text):
        build(rtx, source_of(plan, "head", path, **changes), BuildOptions((89,)))


@pytest.mark.parametrize("shape", [(4, 4), ("rows", "channels")])
def test_dimensions_that_are_fixed_or_free_against_the_plan(
    rtx: Flavour, plans: Callable[[str], Plan], shape: tuple[int | str, ...]
) -> None:
    plan = plans("fp32")
    inputs = tuple(
        TensorSpec(s.name, s.dtype, shape) if s.name == "x" else s
        for s in plan.graph("head").inputs
    )
    with unpacked(plan, plan.graph("head")) as path, pytest.raises(DisaError, match="the input x"):
        build(rtx, source_of(plan, "head", path, inputs=inputs), BuildOptions((89,)))


def test_a_profile_without_an_input(rtx: Flavour, plans: Callable[[str], Plan]) -> None:
    plan = plans("fp32")
    with unpacked(plan, plan.graph("head")) as path:
        source = source_of(plan, "head", path)
        profile = {name: shape for name, shape in source.profile.items() if name != "noise"}
        source = source_of(plan, "head", path, profile=profile)
        with pytest.raises(DisaError, match=r"could not be built: .* noise is missing dimensions"):
            build(rtx, source, BuildOptions((89,)))


def test_an_interrupt_ends_the_build(rtx: Flavour, plans: Callable[[str], Plan]) -> None:
    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    plan = plans("fp32")
    with unpacked(plan, plan.graph("head")) as path, pytest.raises(KeyboardInterrupt):
        build(rtx, source_of(plan, "head", path), BuildOptions((89,)), None, interrupt)


class Recorder:
    """Notes what is done to a builder's configuration."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.timing_data: list[bytes] = []
        self.refuse_once = False

    def clear_flag(self, flag: Any) -> None:
        self.calls.append(("clear", flag))

    def create_timing_cache(self, data: bytes) -> Any:
        self.timing_data.append(data)
        return self

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        refused, self.refuse_once = self.refuse_once, False
        return not refused


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_what_is_in_fp32_is_not_computed_in_tf32(
    rtx: Flavour, plans: Callable[[str], Plan], precision: str
) -> None:
    """A plan of lower precision has graphs and matmuls in fp32 too."""
    full = fake_flavour(FakeDevice(), rtx=False)
    full.trt.BuilderFlag, full.trt.ProfilingVerbosity = (
        rtx.trt.BuilderFlag,
        rtx.trt.ProfilingVerbosity,
    )
    config = Recorder()
    source = source_of(plans(precision), "head", Path())
    builder._configure(full, config, source, BuildOptions((89,)), None)  # type: ignore[arg-type]
    assert ("clear", rtx.trt.BuilderFlag.TF32) in config.calls


def test_timings_are_read_where_kernels_are_timed(rtx: Flavour, tmp_path: Path) -> None:
    full = fake_flavour(FakeDevice(), rtx=False)
    config, path = Recorder(), tmp_path / "timings"
    assert builder._load_timing_cache(full, config, path) is config
    path.write_bytes(b"old")
    config.refuse_once = True
    assert builder._load_timing_cache(full, config, path) is config
    assert config.timing_data == [b"", b"old", b""]
    assert builder._load_timing_cache(rtx, config, path) is None
    assert builder._load_timing_cache(full, config, None) is None


def test_fixed_and_free_dimensions_in_a_profile() -> None:
    specs = [TensorSpec("x", "float32", ("rows", 4, 0))]
    profile = graph_profile("g", specs, {"rows": Range(1, 2, 3)})
    assert profile == {"x": ShapeRange((1, 4, 0), (2, 4, 0), (3, 4, 0))}
    assert np.prod(profile["x"].maximum) == 0
