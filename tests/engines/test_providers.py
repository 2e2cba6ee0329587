"""Providers that this machine may not have, with stand-ins for ONNX Runtime's objects."""

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from disa.engines import providers
from disa.engines.providers import CPU, CUDA, OPENVINO, PROVIDERS, Provider, check_provider
from disa.engines.tensorrt.open import Host
from disa.errors import DisaError, MissingDependency

from .gpu.fake_device import FakeDevice


class FakeRuntime:
    """As much of ONNX Runtime as setting a provider up needs."""

    def __init__(self, available: list[str], devices: list[Any] | None = None) -> None:
        self.available = available
        self.found = devices or []
        self.devices: list[Any] = []
        self.preloaded = False
        self.registered: list[tuple[str, str]] = []

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded = True
        print("Failed to load libcufft.so.12")

    def get_ep_devices(self) -> list[Any]:
        return self.devices

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if (name, path) in self.registered:
            raise RuntimeError("EP library is already registered")
        self.registered.append((name, path))
        self.devices = self.found


class FakeOptions:
    """Session options that remember what they were given."""

    def __init__(self) -> None:
        self.added: list[tuple[list[Any], dict[str, str]]] = []

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.added.append((devices, options))


def device(name: str, kind: str) -> Any:
    return SimpleNamespace(ep_name=name, ep_metadata={"ov_device": kind})


def session(provider: str, **nodes: list[str]) -> Any:
    """A session with a first provider, and the node types that each provider runs."""
    parts = [
        SimpleNamespace(
            ep_name=name, get_nodes=lambda types=types: [SimpleNamespace(op_type=t) for t in types]
        )
        for name, types in nodes.items()
    ]
    return SimpleNamespace(
        get_providers=lambda: [provider, CPU], get_provider_graph_assignment_info=lambda: parts
    )


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed onnxruntime-ep-openvino."""
    module = ModuleType("onnxruntime_ep_openvino")
    module.get_library_path = lambda: "/lib/openvino.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", module)


def prepare(
    engine: str, runtime: FakeRuntime, precision: str | None = None
) -> tuple[Provider, FakeOptions]:
    options = FakeOptions()
    return PROVIDERS[engine].prepare(runtime, options, 3, precision), options


def test_cuda_is_asked_for_and_nothing_but_the_cpu_behind_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(lambda name: "absent", FakeDevice)
    monkeypatch.setattr("disa.engines.tensorrt.open.HOST", host)
    runtime = FakeRuntime([CUDA, CPU])
    provider, _ = prepare("cuda", runtime)
    (name, settings), behind = provider.arguments["providers"]
    assert (name, settings["use_tf32"], behind) == (CUDA, "0", CPU)
    assert (provider.stream, settings["user_compute_stream"]) == (host.stream, "7")
    assert runtime.preloaded
    assert capsys.readouterr().out == ""
    assert provider.precision is None
    assert "enable_cuda_graph" not in settings
    assert provider.capturing is not None
    assert provider.capturing["providers"][0][1]["enable_cuda_graph"] == "1"
    assert provider.capturing["providers"][0][1]["user_compute_stream"] == "7"
    provider, _ = prepare("cuda", runtime, "tf32")
    assert provider.arguments["providers"][0][1]["use_tf32"] == "1"
    assert provider.precision == "tf32"


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(lambda name: "absent", lambda: None)
    monkeypatch.setattr("disa.engines.tensorrt.open.HOST", host)
    with pytest.raises(DisaError, match=r"no NVIDIA GPU .* here: use --engine cpu"):
        prepare("cuda", FakeRuntime([CUDA, CPU]))


def test_without_the_gpu_package_the_command_that_brings_it_is_named() -> None:
    with pytest.raises(MissingDependency, match=r"onnxruntime-gpu.*pip install 'disa\[gpu\]'"):
        prepare("cuda", FakeRuntime([CPU]))


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("fast", "precision", "hint", "told"),
    [
        (True, None, "bf16", "bf16"),
        (False, None, "f32", "fp32"),
        (True, "fp32", "f32", "fp32"),
        (False, "bf16", "bf16", "bf16"),
    ],
)
def test_openvino_gets_its_precision(
    monkeypatch: pytest.MonkeyPatch, fast: bool, precision: str | None, hint: str, told: str
) -> None:
    monkeypatch.setattr(providers, "fast_bfloat16", lambda: fast)
    wanted = device(OPENVINO, "CPU")
    others = [device(OPENVINO, "GPU"), device(f"{OPENVINO}.AUTO", "CPU"), device(CPU, "CPU")]
    runtime = FakeRuntime([CPU], [*others, wanted])
    for _ in range(2):
        provider, options = prepare("openvino", runtime, precision)
        ((devices, settings),) = options.added
        assert devices == [wanted]
        assert json.loads(settings["load_config"]) == {
            "CPU": {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": "3"}
        }
        assert (provider.name, provider.precision) == (OPENVINO, told)
    assert runtime.registered == [(OPENVINO, "/lib/openvino.so")]


@pytest.mark.usefixtures("plugin")
def test_openvino_without_its_processor() -> None:
    with pytest.raises(DisaError, match=r"finds no Intel processor.*use --engine cpu"):
        prepare("openvino", FakeRuntime([CPU], [device(OPENVINO, "GPU")]))
    runtime = FakeRuntime([CPU])
    assert not any(PROVIDERS["openvino"].runs(runtime) for _ in range(2))
    assert PROVIDERS["openvino"].runs(FakeRuntime([CPU], [device(OPENVINO, "CPU")]))


def test_openvino_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)
    with pytest.raises(MissingDependency, match=r"pip install 'disa\[openvino\]'"):
        prepare("openvino", FakeRuntime([CPU]))
    assert not PROVIDERS["openvino"].runs(FakeRuntime([CPU]))


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("cpu", "bf16", "the engine cpu computes in fp32, not in bf16"),
        ("cuda", "bf16", "the engine cuda computes in fp32, tf32, not in bf16"),
        ("openvino", "fp16", "the engine openvino computes in fp32, bf16, not in fp16"),
    ],
)
def test_precisions_that_an_engine_does_not_have(engine: str, precision: str, message: str) -> None:
    with pytest.raises(DisaError, match=message):
        prepare(engine, FakeRuntime([CUDA, CPU]), precision)


def test_a_provider_that_was_dropped_is_an_error() -> None:
    with pytest.raises(DisaError, match=f"cannot use {CUDA} here and would run on {CPU}"):
        check_provider(Provider(CUDA), session(CPU))


def test_work_left_to_the_cpu_is_an_error() -> None:
    provider = Provider(OPENVINO)
    assert check_provider(provider, session(OPENVINO, **{OPENVINO: ["MatMul", "Softmax"]})) == ""
    shapes = session(OPENVINO, **{OPENVINO: ["MatMul"], CPU: ["Shape", "Gather"]})
    assert check_provider(provider, shapes) == ", 2 shape nodes on the CPU"
    heavy = session(OPENVINO, **{OPENVINO: ["Add"], CPU: ["Softmax", "Shape", "MatMul"]})
    with pytest.raises(DisaError, match=f"{OPENVINO} leaves MatMul, Softmax of the graph"):
        check_provider(provider, heavy)


def test_the_cpu_runs_all_of_a_graph() -> None:
    assert check_provider(Provider(CPU), session(CPU, **{CPU: ["MatMul"]})) == ""
