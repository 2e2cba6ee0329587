"""What can be told about an engine of a plan."""

import json
from typing import Any

from ..manifest import EngineInfo
from ..plan import Plan
from .check import check_device, check_flavour, deserialize
from .logger import collect
from .open import HOST, Host


def describe(plan: Plan, engine: EngineInfo, host: Host = HOST) -> dict[str, Any]:
    """Layers and device memory of an engine, from TensorRT's engine inspector.

    Returns `layers`, as the inspector gives them, and `memory` with bytes of "activations".
    Raises EngineMismatch if the engine cannot be loaded here; what the builder told of its
    memory is in `engine.details` all the same.
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
