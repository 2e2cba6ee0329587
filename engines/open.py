"""Selects the engine of a plan's graphs and opens sessions."""

import sys
from importlib.util import find_spec

from ..errors import DisaError
from .cpu import check_threads, exact_int8
from .ort.session import OnnxRuntimeSession, provider_runs
from .plan.plan import Plan
from .session import Session

ENGINES = ("auto", "onnxruntime", "cpu", "cuda", "openvino", "tensorrt", "tensorrt-rtx")
"""Values of `engine`. "auto" selects the fastest one that runs here, "onnxruntime" the faster of
its providers "cuda" and "cpu"."""

ON_HOST = ("cpu", "openvino")
"""Those that compute on the host's processor."""


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

    Args:
        threads: threads on the host; None for all physical cores.
        precision: "fp32" keeps an engine from computing in a lower precision (OpenVINO); None
            leaves the choice to the engine, but "auto" keeps a plan in fp32 to fp32.
        cuda_graphs, prepack: options of ONNX Runtime, see `OnnxRuntimeSession`.

    Raises:
        DisaError: the engine cannot run the graph here.
    """
    check_threads(threads)
    chosen = choose_engine(plan, engine, precision)
    if engine == "auto" and chosen == "openvino" and plan.manifest.precision == "fp32":
        # bf16 is an approximation: it is for those who name the engine that computes in it.
        precision = "fp32"
    engine = chosen
    if engine in ("tensorrt", "tensorrt-rtx"):
        from .tensorrt.load import open_engine

        return open_engine(plan, graph, engine)
    if engine == "openvino":
        from .openvino.session import OpenVINOSession

        return OpenVINOSession(plan, graph, threads=threads, precision=precision)
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
    """Resolve "auto" and "onnxruntime" for this plan on this machine; other names are unchanged.

    All graphs of a plan run on one engine, so that arrays need not move between engines. OpenVINO
    is selected if it is installed: its kernels are faster in fp32, bf16 and int8
    (docs/benchmarks.md). If `precision` is "fp32", accuracy is more important than speed, and
    ONNX Runtime is selected if it is installed; likewise for int8 on a processor on which OpenVINO
    is not exact.

    Raises:
        DisaError: there is no such engine.
    """
    if engine not in ENGINES:
        raise DisaError(f"there is no engine {engine}: choose one of {', '.join(ENGINES)}")
    if engine not in ("auto", "onnxruntime"):
        return engine
    if engine == "auto" and plan.manifest.engines:
        from .tensorrt.load import usable_backend

        if backend := usable_backend(plan):
            return backend
    openvino = engine == "auto" and installed("openvino")
    if openvino and not installed("onnxruntime"):
        return "openvino"
    if provider_runs("cuda"):
        return "cuda"
    inexact = precision == "fp32" or (plan.manifest.precision == "int8" and not exact_int8())
    return "openvino" if openvino and not inexact else "cpu"


def installed(package: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return package in sys.modules or find_spec(package) is not None
