"""Chooses what runs a graph."""

from ..errors import DisaError
from .onnxruntime import OnnxRuntimeSession
from .plan import Plan
from .session import Session

ENGINES = ("auto", "onnxruntime", "cpu", "cuda", "openvino", "tensorrt", "tensorrt-rtx")


def open_session(
    plan: Plan, graph: str, engine: str = "auto", *, threads: int | None = None
) -> Session:
    """Load a graph of a plan. Raises DisaError if that engine cannot run here."""
    if engine in ("auto", "onnxruntime", "cpu"):
        return OnnxRuntimeSession(plan, graph, threads)
    raise DisaError(f"the engine {engine} cannot be used yet: choose one of {', '.join(ENGINES)}")
