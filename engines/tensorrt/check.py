"""Whether an engine of a plan can run here, told before TensorRT is asked."""

from collections.abc import Mapping
from typing import Any

from ...errors import DisaError
from ..gpu.device import Device
from ..manifest import EngineInfo, ShapeRange
from ..plan import Plan
from ..session import TensorSpec
from .flavour import Flavour
from .logger import collect, last_error


class EngineMismatch(DisaError):
    """An engine that is in order and cannot run here."""


def rebuild_command(plan: Plan, engine: EngineInfo, sm: int | None = None) -> str:
    """The command that puts a fitting engine into the plan."""
    gpu = f" --gpu sm_{sm}" if sm and engine.backend == "tensorrt-rtx" else ""
    return f"disa-export --add-engine {plan.path} --engine {engine.backend}{gpu}"


def check_flavour(plan: Plan, engine: EngineInfo, found: Flavour | str) -> Flavour:
    """The TensorRT that is here, if it is exactly the one that built the engine."""
    package = f"{engine.backend}=={engine.version}"
    if isinstance(found, str):
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} {engine.version} for the graph "
            f"{engine.graph}, which cannot be imported here ({found}): run `pip install {package}`"
        )
    if found.version != engine.version:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} {engine.version} for the graph "
            f"{engine.graph}, and {found} is here: run `pip install {package}`, or "
            f"`{rebuild_command(plan, engine)}`"
        )
    return found


def check_device(plan: Plan, engine: EngineInfo, device: Device | None) -> Device:
    """The GPU that is here, if the engine is built for it."""
    built_for = ", ".join(engine.architectures)
    if device is None:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} for {built_for}, and there is no "
            "NVIDIA GPU with a working driver here: use --engine onnxruntime"
        )
    least = engine.details.get("least_sm", 0)
    if f"sm_{device.sm}" not in engine.architectures or device.sm < least:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} for {built_for}, and the GPU here is "
            f"{device.name} (sm_{device.sm}): run `{rebuild_command(plan, engine, device.sm)}`"
        )
    name = engine.details.get("device", device.name)
    if name != device.name:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} tuned on {name}, and the GPU here is "
            f"{device.name}: run `{rebuild_command(plan, engine)}`"
        )
    cuda = engine.details.get("cuda")
    if cuda and device.cuda // 1000 < int(cuda):
        raise EngineMismatch(
            f"{plan.path} has an engine for CUDA {cuda}, and the driver here runs CUDA "
            f"{device.cuda // 1000}.{device.cuda % 1000 // 10}: update the NVIDIA driver"
        )
    return device


def deserialize(
    plan: Plan, engine: EngineInfo, flavour: Flavour, device: Device, runtime: Any
) -> Any:
    """The engine as TensorRT's object, checked against the manifest.

    runtime: of TensorRT; it must live as long as the engine.
    """
    with collect(flavour.trt) as messages, plan.read(engine.member) as data:
        reason = flavour.validity(runtime, data)
        if reason:
            raise EngineMismatch(
                f"{flavour} says that the engine of the graph {engine.graph} cannot run on "
                f"{device.name} (sm_{device.sm}): {reason}; use --engine onnxruntime"
            )
        loaded = runtime.deserialize_cuda_engine(data)
        if loaded is None:
            raise DisaError(
                f"{flavour} cannot load the engine of the graph {engine.graph} from {plan.path}: "
                f"{last_error(messages)}; run `{rebuild_command(plan, engine, device.sm)}`"
            )
    info = plan.graph(engine.graph)
    check_tensors(flavour, loaded, info.inputs, info.outputs, engine.profiles[0])
    return loaded


def check_tensors(
    flavour: Flavour,
    loaded: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    profile: Mapping[str, ShapeRange],
) -> None:
    """DisaError if a loaded engine has other tensors or profiles than the manifest says."""
    mode = flavour.trt.TensorIOMode
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    for kind, specs in ((mode.INPUT, inputs), (mode.OUTPUT, outputs)):
        found = {name for name in names if loaded.get_tensor_mode(name) == kind}
        if found != {spec.name for spec in specs}:
            raise DisaError(
                f"the engine has the tensors {', '.join(sorted(found))} where the plan says "
                f"{', '.join(spec.name for spec in specs)}: the plan is damaged, export it again"
            )
        for spec in specs:
            _check_tensor(loaded, spec)
    for name, shapes in profile.items():
        wanted = [shapes.minimum, shapes.usual, shapes.maximum]
        told = [tuple(shape) for shape in loaded.get_tensor_profile_shape(name, 0)]
        if told != wanted:
            raise DisaError(
                f"the engine takes {told} as {name} where the plan says {wanted}: "
                "the plan is damaged, export it again"
            )


def _check_tensor(loaded: Any, spec: TensorSpec) -> None:
    dtype = {"FLOAT": "float32", "INT64": "int64"}.get(loaded.get_tensor_dtype(spec.name).name)
    shape = tuple(loaded.get_tensor_shape(spec.name))
    fits = dtype == spec.dtype and len(shape) == len(spec.shape)
    fits = fits and all(
        size in (-1, wanted) or isinstance(wanted, str)
        for size, wanted in zip(shape, spec.shape, strict=False)
    )
    if not fits:
        raise DisaError(
            f"the engine's tensor {spec.name} is {dtype}{list(shape)} where the plan says {spec}: "
            "the plan is damaged, export it again"
        )
