"""The installed TensorRT: all differences between its flavours are in this file.

`tensorrt` (10.x, 11.x) times kernels on the GPU it builds for; `tensorrt_rtx` builds for GPUs of
other machines and compiles kernels on the machine that runs them. The features of a flavour are
read from the module itself, never derived from its version.
"""

import importlib
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DisaError, EngineError, InvalidRequest
from .logger import collect, last_error, logger_of

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt-rtx"
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}

LEAST_SM = {"fp32": 80, "fp16": 75, "bf16": 80, "int8": 80, "fp8": 89, "fp4": 120}
"""Oldest architecture that supports a precision. TensorRT-RTX has no fp32 matmuls on sm_75, and
int8 graphs keep some of them; it writes engines with fp8 or fp4 that claim older architectures but
cannot run there."""


@dataclass(frozen=True)
class Flavour:
    """An importable TensorRT."""

    name: str
    """"tensorrt" or "tensorrt-rtx"."""
    version: str
    trt: Any
    """The module."""

    def __str__(self) -> str:
        title = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}.get(self.name, self.name)
        return f"{title} {self.version}"

    @property
    def architectures(self) -> tuple[int, ...]:
        """Architectures it can build for without the GPU, as 89 for sm_89; empty if it needs the
        GPU."""
        found = getattr(self.trt, "ComputeCapability", None)
        if found is None:
            return ()
        named = (re.fullmatch(r"SM(\d+)", name) for name in found.__members__)
        return tuple(sorted(int(match[1]) for match in named if match))

    @property
    def finishes_kernels_at_run_time(self) -> bool:
        """Whether kernels are compiled and cached at run time, and not timed at build time."""
        return hasattr(self.trt, "IRuntimeCache")

    @property
    def captures_by_itself(self) -> bool:
        """Whether it makes CUDA graphs itself; then no other code may."""
        return hasattr(self.trt, "CudaGraphStrategy")

    @property
    def cuda(self) -> str:
        """The major version of CUDA of the installed package; "" if unknown."""
        for distribution in _distributions(MODULES[self.name]):
            match = re.search(r"[-_]cu(\d+)$", distribution)
            if match:
                return match[1]
        return ""

    def start(self, kind: str) -> Any:
        """Create TensorRT's "Builder" or "Runtime".

        Raises:
            EngineError: TensorRT does not start, for example because the driver is too old.
        """
        with collect(self.trt) as messages:
            try:
                started = getattr(self.trt, kind)(logger_of(self.trt))
            except TypeError:  # The bindings raise it for a null pointer.
                started = None
        if started is None:
            raise EngineError(
                f"{self} does not start: {last_error(messages)}: check that the NVIDIA driver "
                f"supports CUDA {self.cuda or 'of this package'}, or use --engine onnxruntime"
            )
        return started

    def create_network(self, builder: Any) -> Any:
        """Create a strongly typed network: the precision is that of the ONNX graph."""
        kinds = getattr(self.trt, "NetworkDefinitionCreationFlag", None)
        # TensorRT 11 has only such networks, and accepts the flag while it exists.
        flag = getattr(kinds, "STRONGLY_TYPED", None)
        return builder.create_network(0 if flag is None else 1 << int(flag))

    def set_targets(self, config: Any, targets: Sequence[int]) -> int | None:
        """Set the architectures to build for. Returns the one that is refused, or None.

        A flavour that builds only for this machine's GPU needs no setting.
        """
        if not self.architectures:
            return None
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            capability = getattr(self.trt.ComputeCapability, f"SM{target}", None)
            if capability is None or not config.set_compute_capability(capability, index):
                return target
        return None

    def validity(self, runtime: Any, engine: memoryview) -> str:
        """Why this GPU cannot run the engine, from its header alone; "" if there is no reason."""
        if not hasattr(runtime, "get_engine_validity"):
            return ""
        size = getattr(runtime, "engine_header_size", 64)
        verdict, diagnostics = runtime.get_engine_validity(bytes(engine[:size]))
        if verdict != self.trt.EngineValidity.INVALID:
            return ""
        known = self.trt.EngineInvalidityDiagnostics.__members__
        reasons = [
            name.lower().replace("_", " ")
            for name, reason in known.items()
            if int(diagnostics) & int(reason.value)
        ]
        return ", ".join(reasons) or "no reason given"

    def memory_size(self, engine: Any) -> int:
        """Bytes of device memory that one execution needs in addition to weights and tensors."""
        if hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)

    def runtime_config(self, engine: Any, loop: bool, specialisation: str) -> Any:
        """Settings for contexts of `engine`, or None if there are none.

        Args:
            loop: the context runs the same shapes repeatedly, so CUDA graphs save time.
            specialisation: "lazy", "eager" or "none": when kernels for exact shapes are compiled.
        """
        if not (self.captures_by_itself and hasattr(engine, "create_runtime_config")):
            return None
        config = engine.create_runtime_config()
        strategy = self.trt.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if loop else strategy.DISABLED
        kinds = self.trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(
            kinds, specialisation.upper()
        )
        return config

    def create_context(self, engine: Any, config: Any) -> Any:
        """Create an execution context; if graphs are captured by our code it has no memory yet.

        Such a context needs `set_memory` before it is used: contexts of several shapes share the
        memory.
        """
        if config is not None:
            return engine.create_execution_context(config)
        if self.captures_by_itself:
            return engine.create_execution_context()
        kinds = self.trt.ExecutionContextAllocationStrategy
        return engine.create_execution_context(kinds.USER_MANAGED)

    @property
    def contexts_need_memory(self) -> bool:
        """Whether the caller must set the memory of contexts from `create_context`."""
        return not self.captures_by_itself

    @staticmethod
    def set_memory(context: Any, address: int, size: int) -> None:
        """Set the device memory of a context."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address


def _distributions(module: str) -> list[str]:
    """Installed packages whose name begins with the module's name."""
    names = (d.metadata["Name"] for d in importlib.metadata.distributions())
    return [name for name in names if name and name.replace("-", "_").startswith(f"{module}_cu")]


def find(name: str) -> Flavour | str:
    """The flavour with that name, or why it cannot be used."""
    module = MODULES[name]
    try:
        trt = importlib.import_module(module)
    # A broken installation fails in many ways: missing libraries, a wrong driver, bad symbols.
    except Exception as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if not hasattr(trt, "Builder") and not hasattr(trt, "Runtime"):
        return f"the module {module} at {getattr(trt, '__file__', '?')} is not TensorRT"
    return Flavour(name, str(trt.__version__), trt)


def load(name: str | None = None, ahead_of_time: bool = False) -> Flavour:
    """The flavour with that name, or the installed one.

    Args:
        ahead_of_time: it must be able to build for a GPU of another machine.

    Raises:
        DisaError: no flavour can be used; the message gives the reason for each.
    """
    reasons = []
    for candidate in [name] if name else [TENSORRT, TENSORRT_RTX]:
        if candidate not in MODULES:
            raise InvalidRequest(f"there is no engine {candidate}: use tensorrt or tensorrt-rtx")
        found = find(candidate)
        if isinstance(found, str):
            reasons.append(f"{candidate} cannot be imported ({found})")
        elif ahead_of_time and not found.architectures:
            reasons.append(f"{found} builds only for the GPU it runs on")
        else:
            return found
    extra = name or (TENSORRT_RTX if ahead_of_time else TENSORRT)
    raise DisaError(f"{'; '.join(reasons)}: run `pip install 'disa[{extra}]'`")
