"""The execution providers of ONNX Runtime: what each needs, and whether it really runs."""

import ctypes
import json
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..errors import DisaError, MissingDependency
from .cpu import fast_bfloat16

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OPENVINO = "OpenVINOExecutionProvider"

# Work whose running on the CPU beside a device would be a silent fallback. What computes shapes
# is put on the CPU by design.
_HEAVY = frozenset(
    (
        *("Conv", "Einsum", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"),
        *("Attention", "MultiHeadAttention", "Softmax"),
        *("BiasGelu", "FastGelu", "Gelu"),
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("SimplifiedLayerNormalization", "SkipLayerNormalization"),
    )
)


@dataclass(frozen=True)
class Provider:
    """An execution provider, set up for one session."""

    name: str
    precision: str | None = None
    """What it computes in where that is not what the graph says."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of InferenceSession."""
    stream: Any = None
    """The stream of a GPU whose memory its arrays live in; None for the host's memory."""
    capturing: Mapping[str, Any] | None = None
    """Instead of `arguments`, for a session that makes CUDA graphs; None if none can."""


def cpu_provider(_runtime: Any, _options: Any, _threads: int, precision: str | None) -> Provider:
    """ONNX Runtime's own kernels; they compute in the graph's precision."""
    _only(precision, "cpu", None, "fp32")
    return Provider(CPU, arguments={"providers": [CPU]})


def cuda_provider(runtime: Any, _options: Any, _threads: int, precision: str | None) -> Provider:
    """An NVIDIA GPU. fp32 graphs are computed in fp32 proper unless `precision` is "tf32"."""
    _only(precision, "cuda", None, "fp32", "tf32")
    if CUDA not in runtime.get_available_providers():
        raise MissingDependency("onnxruntime-gpu", "gpu")
    # It prints what it does not find, and standard output is for results.
    with redirect_stdout(sys.stderr):
        runtime.preload_dlls()
    stream = _gpu_stream()
    settings = {
        "device_id": "0",
        "user_compute_stream": str(stream.handle),
        "use_tf32": str(int(precision == "tf32")),
        # The default tries every algorithm of a convolution for every new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    # Memory in reserve, for none may be asked of the driver while a CUDA graph is captured.
    capturing = {"enable_cuda_graph": "1", "arena_extend_strategy": "kNextPowerOfTwo"}
    return Provider(
        CUDA,
        "tf32" if precision == "tf32" else None,
        {"providers": [(CUDA, settings), CPU]},
        stream,
        {"providers": [(CUDA, {**settings, **capturing}), CPU]},
    )


def _gpu_stream() -> Any:
    """The stream that all sessions on the GPU share, so that none waits for another."""
    from .tensorrt.open import HOST

    if HOST.device is None:
        raise DisaError(
            "CUDA finds no NVIDIA GPU with a working driver here: use --engine cpu, or install or "
            "update the NVIDIA driver"
        )
    return HOST.stream


def _cuda_runs(runtime: Any) -> bool:
    """Whether ONNX Runtime has the provider and the driver sees a GPU."""
    if CUDA not in runtime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 < count.value


def openvino_provider(runtime: Any, options: Any, threads: int, precision: str | None) -> Provider:
    """OpenVINO's kernels for Intel processors, from the plug-in onnxruntime-ep-openvino.

    They compute in bf16 where the processor can, whatever the graph's precision, unless
    `precision` is "fp32".
    """
    _only(precision, "openvino", None, "fp32", "bf16")
    device = _openvino_device(runtime)
    if precision is None:
        precision = "bf16" if fast_bfloat16() else "fp32"
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    config = {"CPU": {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": str(threads)}}
    options.add_provider_for_devices([device], {"load_config": json.dumps(config)})
    return Provider(OPENVINO, precision)


def _openvino_device(runtime: Any) -> Any:
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError as error:
        raise MissingDependency("onnxruntime-ep-openvino", "openvino") from error
    _register(runtime, OPENVINO, plugin.get_library_path())
    for device in runtime.get_ep_devices():
        if device.ep_name == OPENVINO and device.ep_metadata.get("ov_device") == "CPU":
            return device
    raise DisaError(
        "OpenVINO's plug-in for ONNX Runtime finds no Intel processor in this machine: "
        "use --engine cpu"
    )


@cache
def _register(runtime: Any, name: str, library: str) -> None:
    """Register a plug-in. ONNX Runtime refuses a second time, even if it gave no device."""
    runtime.register_execution_provider_library(name, library)


def _openvino_runs(runtime: Any) -> bool:
    try:
        _openvino_device(runtime)
    except DisaError:
        return False
    return True


def _only(precision: str | None, engine: str, *allowed: str | None) -> None:
    if precision not in allowed:
        names = ", ".join(name for name in allowed if name)
        raise DisaError(f"the engine {engine} computes in {names}, not in {precision}")


@dataclass(frozen=True)
class Kind:
    """How to set a provider up, and how to see at no great cost whether it would run."""

    prepare: Callable[[Any, Any, int, str | None], Provider]
    runs: Callable[[Any], bool]


PROVIDERS: Mapping[str, Kind] = {
    "cpu": Kind(cpu_provider, lambda runtime: True),
    "cuda": Kind(cuda_provider, _cuda_runs),
    "openvino": Kind(openvino_provider, _openvino_runs),
}


def check_provider(provider: Provider, session: Any) -> str:
    """A note on what does not run on `provider`, empty if nothing.

    Raises DisaError if the provider was dropped, or leaves heavy work to the CPU.
    """
    if session.get_providers()[0] != provider.name:
        raise DisaError(
            f"ONNX Runtime cannot use {provider.name} here and would run on "
            f"{session.get_providers()[0]} instead: check the driver and the CUDA libraries, "
            "or use --engine cpu"
        )
    if provider.name == CPU:
        return ""
    nodes = [
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != provider.name
        for node in part.get_nodes()
    ]
    heavy = sorted(_HEAVY.intersection(nodes))
    if heavy:
        raise DisaError(
            f"{provider.name} leaves {', '.join(heavy)} of the graph to the CPU: use --engine cpu, "
            "or export in another precision"
        )
    return f", {len(nodes)} shape nodes on the CPU" if nodes else ""
