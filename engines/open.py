"""Chooses what runs the graphs of a plan."""

from ..errors import DisaError
from .cpu import fast_bfloat16
from .onnxruntime import OnnxRuntimeSession, provider_runs
from .plan import Plan
from .session import Session

ENGINES = ("auto", "onnxruntime", "cpu", "cuda", "openvino", "tensorrt", "tensorrt-rtx")
"""What `engine` may be. "auto" is the fastest that runs here, "onnxruntime" the same without
TensorRT, "cpu", "cuda" and "openvino" are ONNX Runtime's providers."""


def open_session(
    plan: Plan,
    graph: str,
    engine: str = "auto",
    *,
    threads: int | None = None,
    precision: str | None = None,
) -> Session:
    """Load a graph of a plan.

    threads: how many the host computes with; all physical cores if None.
    precision: "fp32" keeps an engine that would compute in less (OpenVINO) to fp32; None leaves
    the choice to the engine. Raises DisaError if that engine cannot run the graph here.
    """
    engine = choose_engine(plan, engine)
    if engine in ("tensorrt", "tensorrt-rtx"):
        from .tensorrt.open import open_engine

        return open_engine(plan, graph, engine)
    return OnnxRuntimeSession(plan, graph, engine, threads=threads, precision=precision)


def choose_engine(plan: Plan, engine: str = "auto") -> str:
    """What "auto" and "onnxruntime" mean for this plan on this machine; others stay.

    All graphs of a plan run on one engine, so that arrays need not change between them.
    """
    if engine not in ENGINES:
        raise DisaError(f"there is no engine {engine}: choose one of {', '.join(ENGINES)}")
    if engine == "auto":
        return _tensorrt(plan) or _onnxruntime()
    return _onnxruntime() if engine == "onnxruntime" else engine


def _tensorrt(plan: Plan) -> str | None:
    if not plan.manifest.engines:
        return None
    from .tensorrt.open import usable_backend

    return usable_backend(plan)


def _onnxruntime() -> str:
    if provider_runs("cuda"):
        return "cuda"
    if fast_bfloat16() and provider_runs("openvino"):
        return "openvino"
    return "cpu"
