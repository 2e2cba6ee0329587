"""Describes an engine of a plan."""

import json
from typing import Any

from ..plan.engine_info import EngineInfo
from ..plan.plan import Plan
from .check import check_device, check_flavour, deserialize
from .load import HOST, Host
from .logger import collect


def describe(plan: Plan, engine: EngineInfo, host: Host = HOST) -> dict[str, Any]:
    """Layers and device memory of an engine, from TensorRT's engine inspector.

    Returns:
        `layers`, from the inspector, and `memory` with the bytes of "activations".

    Raises:
        EngineMismatch: the engine cannot be loaded here; the builder's report of its memory is
            still in `engine.details`.
    """
    flavour = check_flavour(plan, engine, host.find(engine.backend))
    device = check_device(plan, engine, host.device)
    plan.check_member(engine.member)
    loaded = deserialize(plan, engine, flavour, device, host.runtime(flavour))
    with collect(flavour.trt):
        inspector = loaded.create_engine_inspector()
        text = inspector.get_engine_information(flavour.trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text).get("Layers", [])
    except ValueError:
        layers = [text]
    return {"layers": layers, "memory": {"activations": flavour.memory_size(loaded)}}
