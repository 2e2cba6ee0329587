import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx

from disa.engines.tensorrt import flavour
from disa.engines.tensorrt.flavour import Flavour, find, load
from disa.errors import DisaError, EngineError

from ..gpu.fake_device import FakeDevice
from .fake_tensorrt import fake_flavour


def test_what_tensorrt_rtx_can_do() -> None:
    found = load("tensorrt-rtx")
    assert found.version == tensorrt_rtx.__version__
    assert {80, 86, 89, 120} <= set(found.architectures)
    assert 90 not in found.architectures
    assert found.finishes_kernels_at_run_time
    assert found.captures_by_itself
    assert not found.contexts_need_memory
    assert found.cuda.isdigit()


def test_the_one_that_is_installed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert load().name == "tensorrt-rtx"
    other = types.ModuleType("tensorrt")
    other.Builder, other.__version__ = object, "10.16"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", other)
    assert str(load()) == "TensorRT 10.16"
    assert load(ahead_of_time=True).name == "tensorrt-rtx"


def test_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> object:
        if name == "tensorrt":
            raise OSError("libnvinfer.so.10: cannot open shared object file\nmore")
        return types.ModuleType(name)

    monkeypatch.setattr(flavour.importlib, "import_module", fail)
    with pytest.raises(DisaError) as raised:
        load()
    text = str(raised.value)
    assert "tensorrt cannot be imported (libnvinfer.so.10: cannot open shared object file)" in text
    assert "is not TensorRT" in text
    assert "pip install 'disa[tensorrt]'" in text
    assert find("tensorrt-rtx") == "the module tensorrt_rtx at ? is not TensorRT"


def test_an_error_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> object:
        raise RuntimeError

    monkeypatch.setattr(flavour.importlib, "import_module", fail)
    assert find("tensorrt") == "RuntimeError"


def test_full_tensorrt_does_not_build_for_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    made = fake_flavour(FakeDevice(), rtx=False)
    monkeypatch.setattr(flavour, "find", lambda name: made)
    with pytest.raises(DisaError, match="builds only for the GPU it runs on"):
        load("tensorrt", ahead_of_time=True)
    with pytest.raises(DisaError, match="no engine tensorflow"):
        load("tensorflow")


def test_targets_that_are_refused_are_named() -> None:
    class Config:
        num_compute_capabilities = 0

        def set_compute_capability(self, capability: object, index: int) -> bool:
            return index != 1

    found = load("tensorrt-rtx")
    assert found.set_targets(Config(), (80, 86)) == 86
    assert found.set_targets(Config(), (90,)) == 90
    assert fake_flavour(FakeDevice(), rtx=False).set_targets(object(), (80,)) is None


def with_flags(**flags: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(NetworkDefinitionCreationFlag=types.SimpleNamespace(**flags))


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (tensorrt_rtx, 1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)),
        (with_flags(STRONGLY_TYPED=1), 2),
        (with_flags(), 0),
        (types.SimpleNamespace(), 0),
    ],
)
def test_networks_are_strongly_typed_with_the_flag_and_without(module: object, flags: int) -> None:
    builder = types.SimpleNamespace(create_network=lambda given: given)
    assert Flavour("tensorrt", "11.4", module).create_network(builder) == flags


def test_memory_has_two_names() -> None:
    made = fake_flavour(FakeDevice(), rtx=False)
    assert made.memory_size(types.SimpleNamespace(device_memory_size=5)) == 5
    both = types.SimpleNamespace(device_memory_size=5, device_memory_size_v2=6)
    assert made.memory_size(both) == 6
    old = types.SimpleNamespace(device_memory=0)
    Flavour.set_memory(old, 4096, 10)
    assert old.device_memory == 4096


def test_nothing_depends_on_version_numbers() -> None:
    sources = Path(flavour.__file__).parent.glob("*.py")
    for source in sources:
        text = source.read_text()
        assert "__version__" not in text or source.name == "flavour.py"
        assert "version_info" not in text


@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_a_library_that_does_not_start_says_why(kind: str) -> None:
    found = fake_flavour(FakeDevice(), rtx=False)

    def start(logger: Any) -> None:
        logger.log(logger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    setattr(found.trt, kind, start)
    with pytest.raises(EngineError, match=r"does not start: .*error: 35: check .* driver"):
        found.start(kind)


NAMES = {
    "ICudaEngine": (
        *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype"),
        *("get_tensor_shape", "get_tensor_profile_shape", "create_execution_context"),
        *("create_runtime_config", "create_engine_inspector", "device_memory_size_v2"),
    ),
    "IExecutionContext": (
        *("set_optimization_profile_async", "set_input_shape", "set_tensor_address"),
        *("infer_shapes", "get_tensor_shape", "execute_async_v3", "set_device_memory"),
    ),
    "IRuntimeConfig": (
        *("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"),
        *("create_runtime_cache", "set_runtime_cache"),
    ),
    "IRuntimeCache": ("serialize", "deserialize"),
    "Runtime": ("deserialize_cuda_engine", "get_engine_validity", "engine_header_size"),
    "EngineInspector": ("get_engine_information",),
    "TensorIOMode": ("INPUT", "OUTPUT"),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "CudaGraphStrategy": ("DISABLED", "WHOLE_GRAPH_CAPTURE"),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
    "EngineValidity": ("INVALID",),
    "LayerInformationFormat": ("JSON",),
}


@pytest.mark.parametrize("kind", NAMES)
def test_what_only_a_gpu_can_call_is_there(kind: str) -> None:
    assert [n for n in NAMES[kind] if not hasattr(getattr(tensorrt_rtx, kind), n)] == []
