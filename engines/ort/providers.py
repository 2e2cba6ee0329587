"""The execution providers of ONNX Runtime: their settings, and checks that they really run."""

import ctypes
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from ...errors import DisaError, MissingDependency
from ..gpu.shared import SHARED_GPU
from .memory import limit_arrays

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# Operators that must not fall back silently from a device to the CPU. Operators that compute
# shapes run on the CPU by design.
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
    """The precision of computation, if it is not that of the graph."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Additional arguments of InferenceSession."""
    stream: Any = None
    """The GPU stream of its arrays' memory; None for host memory."""
    capturing: Mapping[str, Any] | None = None
    """Used instead of `arguments` for a session that makes CUDA graphs; None if none can."""


def cpu_provider(runtime: Any, options: Any, precision: str | None) -> Provider:
    """ONNX Runtime's CPU kernels; they compute in the graph's precision."""
    _only(precision, "cpu", None, "fp32")
    limit_arrays(runtime, options)
    return Provider(CPU, arguments={"providers": [CPU]})


def cuda_provider(runtime: Any, _options: Any, precision: str | None) -> Provider:
    """An NVIDIA GPU. fp32 graphs are computed in real fp32 unless `precision` is "tf32"."""
    _only(precision, "cuda", None, "fp32", "tf32")
    if CUDA not in runtime.get_available_providers():
        raise MissingDependency("onnxruntime-gpu", "gpu")
    # It prints missing libraries to standard output, which is for results.
    with redirect_stdout(sys.stderr):
        runtime.preload_dlls()
    stream = _gpu_stream()
    settings = {
        "device_id": "0",
        "user_compute_stream": str(stream.handle),
        "use_tf32": str(int(precision == "tf32")),
        # The default tries every convolution algorithm for every new shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    # Reserve memory, because none can be allocated while a CUDA graph is captured.
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
    if SHARED_GPU.device is None:
        raise DisaError(
            "CUDA found no NVIDIA GPU with a working driver: use --engine cpu, or install or "
            "update the NVIDIA driver"
        )
    return SHARED_GPU.stream


def _cuda_runs(runtime: Any) -> bool:
    """Whether ONNX Runtime has the provider and the driver reports a GPU."""
    if CUDA not in runtime.get_available_providers():
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return not failed and count.value > 0


def _only(precision: str | None, engine: str, *allowed: str | None) -> None:
    if precision not in allowed:
        names = ", ".join(name for name in allowed if name)
        raise DisaError(f"the engine {engine} computes in {names}, not in {precision}")


@dataclass(frozen=True)
class Kind:
    """How to set up a provider, and a quick check whether it would run."""

    prepare: Callable[[Any, Any, str | None], Provider]
    runs: Callable[[Any], bool]


PROVIDERS: Mapping[str, Kind] = {
    "cpu": Kind(cpu_provider, lambda runtime: True),
    "cuda": Kind(cuda_provider, _cuda_runs),
}


def check_provider(provider: Provider, session: Any) -> str:
    """Check that a session really runs on `provider`.

    Returns:
        A note on nodes that run elsewhere; empty if there are none.

    Raises:
        DisaError: the provider was dropped, or leaves heavy operators to the CPU.
    """
    if session.get_providers()[0] != provider.name:
        raise DisaError(
            f"ONNX Runtime cannot use {provider.name} here and would run on "
            f"{session.get_providers()[0]} instead: check the driver and the CUDA libraries "
            "(pip install 'disa[gpu]' installs those of CUDA 13), or use --engine cpu"
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
            f"{provider.name} runs {', '.join(heavy)} of the graph on the CPU: use --engine cpu, "
            "or export in another precision"
        )
    return f", {len(nodes)} shape nodes on the CPU" if nodes else ""
