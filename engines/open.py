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
    cuda_graphs: bool = True,
    prepack: bool = True,
) -> Session:
    """Load a graph of a plan.

    threads: how many the host computes with; all physical cores if None.
    precision: "fp32" keeps an engine that would compute in less (OpenVINO) to fp32; None leaves
    the choice to the engine. cuda_graphs: replay loops as CUDA graphs through ONNX Runtime.
    prepack: see `OnnxRuntimeSession`.
    Raises DisaError if that engine cannot run the graph here.
    """
    engine = choose_engine(plan, engine, precision)
    if engine in ("tensorrt", "tensorrt-rtx"):
        from .tensorrt.open import open_engine

        return open_engine(plan, graph, engine)
    return OnnxRuntimeSession(
        plan,
        graph,
        engine,
        threads=threads,
        precision=precision,
        prepack=prepack,
        cuda_graphs=cuda_graphs,
    )


def choose_engine(plan: Plan, engine: str = "auto", precision: str | None = None) -> str:
    """What "auto" and "onnxruntime" mean for this plan on this machine; others stay.

    All graphs of a plan run on one engine, so that arrays need not move between them. OpenVINO
    is chosen for its bf16 only, thus not where `precision` asks for "fp32".
    """
    if engine not in ENGINES:
        raise DisaError(f"there is no engine {engine}: choose one of {', '.join(ENGINES)}")
    if engine not in ("auto", "onnxruntime"):
        return engine
    if engine == "auto" and plan.manifest.engines:
        from .tensorrt.open import usable_backend

        if backend := usable_backend(plan):
            return backend
    if provider_runs("cuda"):
        return "cuda"
    if precision != "fp32" and fast_bfloat16() and provider_runs("openvino"):
        return "openvino"
    return "cpu"
