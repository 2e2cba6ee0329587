"""The part of TensorRT that runs engines, on a fake device, computing with ONNX Runtime.

`fake_module` gives a stand-in for the module `tensorrt` or `tensorrt_rtx`: its engines are
JSON with the ONNX file inside. It is strict where the real one is undefined or slow.
"""

import base64
import itertools
import json
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import onnxruntime

from disa.engines.plan.engine_info import ShapeRange
from disa.engines.plan.manifest import GraphInfo
from disa.engines.tensorrt.flavour import Flavour

from ..gpu.fake_device import FakeDevice

_numbers = itertools.count()
DTYPES = {"float32": ("FLOAT", np.float32), "int64": ("INT64", np.int64)}


class Severity(Enum):
    """Of a message."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class Logger:
    """Base of loggers."""

    Severity = Severity

    def __init__(self) -> None:
        pass


class Mode(Enum):
    """Of a tensor."""

    INPUT = 1
    OUTPUT = 2


def fake_engine(onnx: bytes, graph: GraphInfo, profile: Mapping[str, ShapeRange]) -> bytes:
    """What a fake runtime can load."""
    return json.dumps(
        {
            "onnx": base64.b64encode(onnx).decode(),
            "inputs": [[s.name, s.dtype, s.shape] for s in graph.inputs],
            "outputs": [[s.name, s.dtype, s.shape] for s in graph.outputs],
            "profile": {n: [s.minimum, s.usual, s.maximum] for n, s in profile.items()},
        }
    ).encode()


def read_engine(data: bytes) -> dict[str, Any]:
    """What `fake_engine` wrote; ValueError if that is damaged."""
    content: dict[str, Any] = json.loads(data)
    return content


class Context:
    """An execution context. Once it was captured from, its shapes must not change."""

    def __init__(self, engine: "Engine", has_memory: bool) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(shape)
            for name, _, shape in engine.inputs
            if all(isinstance(size, int) for size in shape)
        }
        self.addresses: dict[str, int] = {}
        self.address_changes = 0
        self.has_memory = has_memory
        self.warm = self.captured = self.has_profile = False

    def set_optimization_profile_async(self, index: int, stream: Any) -> bool:
        assert self.engine.module.device.captured is None
        self.has_profile = index == 0
        return self.has_profile

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        self.has_memory = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.profile[name]
        if len(shape) != len(low) or any(
            not a <= n <= b for a, n, b in zip(low, shape, high, strict=True)
        ):
            self.engine.module.complain(f"{name} {shape} is out of the profile")
            return False
        if self.shapes.get(name) != tuple(shape):
            assert not self.captured, "a graph was captured from this context"
            self.shapes[name] = tuple(shape)
            self.warm = False
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % 256 == 0
        assert address != 0
        if self.addresses.get(name) != address:
            self.address_changes += 1
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name, _, _ in self.engine.inputs if name not in self.shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        specs = {n: shape for n, _, shape in self.engine.inputs}
        if name in specs:
            return tuple(-1 if isinstance(size, str) else size for size in specs[name])
        return self.engine.output_shapes(self.shapes)[name]

    def execute_async_v3(self, stream: Any) -> bool:
        device = self.engine.module.device
        assert self.has_memory, "a context without memory"
        assert self.has_profile, "a context without a profile"
        if device.captured is not None:
            if not self.warm:
                self.engine.module.complain("new shapes cannot be taken in while capturing")
                device.capture_fails = True
                return False
            self.captured = True
        self.warm = True
        self.engine.module.executions += 1
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        device.enqueue(lambda: self.engine.compute(device, addresses, shapes))
        return True


class Engine:
    """A loaded engine."""

    device_memory_size_v2 = 1000

    def __init__(self, module: Any, data: bytes) -> None:
        content = read_engine(data)
        self.module = module
        self.inputs, self.outputs = content["inputs"], content["outputs"]
        self.profile = content["profile"]
        self.tensors = {name: (dtype, shape) for name, dtype, shape in self.inputs + self.outputs}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            base64.b64decode(content["onnx"]), options, providers=["CPUExecutionProvider"]
        )
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}
        self.contexts: list[Context] = []
        self.configs: list[Any] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in [n for n, _, _ in self.inputs] else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=DTYPES[self.tensors[name][0]][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(n, str) else n for n in self.tensors[name][1])

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, ...]]:
        assert index == 0
        return [tuple(shape) for shape in self.profile[name]]

    def create_execution_context(self, how: Any = None) -> Context:
        user_managed = how == self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        self.contexts.append(Context(self, not user_managed))
        return self.contexts[-1]

    def create_runtime_config(self) -> Any:
        self.configs.append(RuntimeConfig())
        return self.configs[-1]

    def create_engine_inspector(self) -> Any:
        return types.SimpleNamespace(
            get_engine_information=lambda form: json.dumps({"Layers": ["one", "two"]})
        )

    def output_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes of the outputs for shapes of the inputs."""
        key = tuple(sorted(shapes.items()))
        if key not in self._shapes:
            zeros = {n: np.zeros(shapes[n], DTYPES[d][1]) for n, d, _ in self.inputs}
            names = [name for name, _, _ in self.outputs]
            results = self.session.run(names, zeros)
            self._shapes[key] = {n: r.shape for n, r in zip(names, results, strict=True)}
        return self._shapes[key]

    def compute(
        self,
        device: FakeDevice,
        addresses: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        """Read the inputs, compute, write the outputs."""
        arrays = {}
        for name, dtype, _ in self.inputs:
            arrays[name] = device.array(addresses[name], shapes[name], DTYPES[dtype][1])
        names = [name for name, _, _ in self.outputs]
        results = self.session.run(names, arrays)
        for name, result in zip(names, results, strict=True):
            device.array(addresses[name], result.shape, result.dtype)[...] = result


class RuntimeConfig:
    """Settings of contexts, as TensorRT-RTX has them."""

    cuda_graph_strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None
    cache: Any = None

    def create_runtime_cache(self) -> "RuntimeCache":
        return RuntimeCache()

    def set_runtime_cache(self, cache: "RuntimeCache") -> bool:
        self.cache = cache
        return True


class RuntimeCache:
    """Kernels made at run time."""

    content = b"empty"

    def deserialize(self, blob: bytes) -> bool:
        self.content = bytes(blob)
        return True

    def serialize(self) -> bytes:
        return self.content + b"+"


class Runtime:
    """Loads engines."""

    engine_header_size = 64

    def __init__(self, module: Any, logger: Any) -> None:
        self.module = module

    def deserialize_cuda_engine(self, data: Any) -> Engine | None:
        try:
            return Engine(self.module, bytes(data))
        except ValueError:
            self.module.complain("the plan's header is damaged")
            return None


def fake_module(device: FakeDevice, rtx: bool, version: str) -> Any:
    """A stand-in for `tensorrt`, or `tensorrt_rtx`."""
    module: Any = types.SimpleNamespace(
        __name__=f"fake_tensorrt_{next(_numbers)}",
        __version__=version,
        device=device,
        executions=0,
        logger=None,
        ILogger=Logger,
        TensorIOMode=Mode,
        ExecutionContextAllocationStrategy=Enum(
            "Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED"
        ),
        LayerInformationFormat=Enum("Format", "ONELINE JSON"),
    )
    module.complain = lambda text: module.logger.log(Severity.ERROR, text)

    def runtime(logger: Any) -> Any:
        module.logger = logger
        made = Runtime(module, logger)
        if rtx:
            made.get_engine_validity = lambda header: (  # type: ignore[attr-defined]
                module.EngineValidity.VALID if device.sm != 90 else module.EngineValidity.INVALID,
                2,
            )
        return made

    module.Runtime = runtime
    if rtx:
        module.IRuntimeCache = RuntimeCache
        module.CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
        module.DynamicShapesKernelSpecializationStrategy = Enum("Special", "LAZY EAGER NONE")
        module.EngineValidity = Enum("EngineValidity", "VALID SUBOPTIMAL INVALID")
        module.EngineInvalidityDiagnostics = Enum(
            "Diagnostics", {"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}
        )
    return module


def fake_flavour(device: FakeDevice, rtx: bool, version: str = "99.1") -> Flavour:
    """A flavour whose engines run on a fake device."""
    name = "tensorrt-rtx" if rtx else "tensorrt"
    return Flavour(name, version, fake_module(device, rtx, version))
