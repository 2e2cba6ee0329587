"""Providers that this machine may not have, with stand-ins for ONNX Runtime's objects."""

from types import SimpleNamespace
from typing import Any

import pytest
from onnxruntime import SessionOptions

from disa.engines.gpu.shared import SharedGpu
from disa.engines.ort.providers import CPU, CUDA, PROVIDERS, Provider, check_provider
from disa.errors import DisaError, MissingDependency

from ..gpu.fake_device import FakeDevice


class FakeRuntime:
    """As much of ONNX Runtime as setting a provider up needs."""

    def __init__(self, available: list[str]) -> None:
        self.available = available
        self.preloaded = False

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.preloaded = True
        print("Failed to load libcufft.so.12")


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


def prepare(engine: str, runtime: FakeRuntime, precision: str | None = None) -> Provider:
    return PROVIDERS[engine].prepare(runtime, SessionOptions(), precision)


def test_cuda_is_asked_for_and_nothing_but_the_cpu_behind_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu = SharedGpu(FakeDevice)
    monkeypatch.setattr("disa.engines.ort.providers.SHARED_GPU", gpu)
    runtime = FakeRuntime([CUDA, CPU])
    provider = prepare("cuda", runtime)
    (name, settings), behind = provider.arguments["providers"]
    assert (name, settings["use_tf32"], behind) == (CUDA, "0", CPU)
    assert (provider.stream, settings["user_compute_stream"]) == (gpu.stream, "7")
    assert runtime.preloaded
    assert capsys.readouterr().out == ""
    assert provider.precision is None
    assert "enable_cuda_graph" not in settings
    assert provider.capturing is not None
    assert provider.capturing["providers"][0][1]["enable_cuda_graph"] == "1"
    assert provider.capturing["providers"][0][1]["user_compute_stream"] == "7"
    provider = prepare("cuda", runtime, "tf32")
    assert provider.arguments["providers"][0][1]["use_tf32"] == "1"
    assert provider.precision == "tf32"


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SharedGpu(lambda: None)
    monkeypatch.setattr("disa.engines.ort.providers.SHARED_GPU", gpu)
    with pytest.raises(DisaError, match=r"no NVIDIA GPU .*: use --engine cpu"):
        prepare("cuda", FakeRuntime([CUDA, CPU]))


def test_without_the_gpu_package_the_command_that_brings_it_is_named() -> None:
    with pytest.raises(MissingDependency, match=r"onnxruntime-gpu.*pip install 'disa\[gpu\]'"):
        prepare("cuda", FakeRuntime([CPU]))


@pytest.mark.parametrize(
    ("engine", "precision", "message"),
    [
        ("cpu", "bf16", "the engine cpu computes in fp32, not in bf16"),
        ("cuda", "bf16", "the engine cuda computes in fp32, tf32, not in bf16"),
    ],
)
def test_precisions_that_an_engine_does_not_have(engine: str, precision: str, message: str) -> None:
    with pytest.raises(DisaError, match=message):
        prepare(engine, FakeRuntime([CUDA, CPU]), precision)


def test_a_provider_that_was_dropped_is_an_error() -> None:
    with pytest.raises(DisaError, match=f"cannot use {CUDA} here and would run on {CPU}"):
        check_provider(Provider(CUDA), session(CPU))


def test_work_left_to_the_cpu_is_an_error() -> None:
    provider = Provider(CUDA)
    assert check_provider(provider, session(CUDA, **{CUDA: ["MatMul", "Softmax"]})) == ""
    shapes = session(CUDA, **{CUDA: ["MatMul"], CPU: ["Shape", "Gather"]})
    assert check_provider(provider, shapes) == ", 2 shape nodes on the CPU"
    heavy = session(CUDA, **{CUDA: ["Add"], CPU: ["Softmax", "Shape", "MatMul"]})
    with pytest.raises(DisaError, match=f"{CUDA} runs MatMul, Softmax of the graph on the CPU"):
        check_provider(provider, heavy)


def test_the_cpu_runs_all_of_a_graph() -> None:
    assert check_provider(Provider(CPU), session(CPU, **{CPU: ["MatMul"]})) == ""
