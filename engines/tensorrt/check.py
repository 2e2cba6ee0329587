"""Checks whether an engine of a plan can run here, before TensorRT loads it."""

from collections.abc import Mapping
from typing import Any

from ...errors import DamagedFile, EngineError
from ..gpu.device import Device
from ..plan.engine_info import EngineInfo, ShapeRange
from ..plan.plan import Plan
from ..session import TensorSpec
from .flavour import Flavour
from .logger import collect, last_error


class EngineMismatch(EngineError):
    """An engine is valid but cannot run here."""


def rebuild_command(plan: Plan, engine: EngineInfo, sm: int | None = None) -> str:
    """The command that adds a matching engine to the plan."""
    gpu = f" --gpu sm_{sm}" if sm and engine.backend == "tensorrt-rtx" else ""
    return f"disa-export --add-engine {plan.path} --engine {engine.backend}{gpu}"


def check_flavour(plan: Plan, engine: EngineInfo, found: Flavour | str) -> Flavour:
    """The installed TensorRT, if it is exactly the version that built the engine.

    Raises:
        EngineMismatch: it is another version, or cannot be imported.
    """
    package = f"{engine.backend}=={engine.version}"
    if isinstance(found, str):
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} {engine.version} for the graph "
            f"{engine.graph}, which cannot be imported here ({found}): run `pip install {package}`"
        )
    if found.version != engine.version:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} {engine.version} for the graph "
            f"{engine.graph}, but {found} is installed: run `pip install {package}`, or "
            f"`{rebuild_command(plan, engine)}`"
        )
    return found


def check_device(plan: Plan, engine: EngineInfo, device: Device | None) -> Device:
    """This machine's GPU, if the engine was built for it.

    Raises:
        EngineMismatch: there is no GPU, or another one, or its driver is too old.
    """
    built_for = ", ".join(engine.architectures)
    if device is None:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} for {built_for}, but this machine has "
            "no NVIDIA GPU with a working driver: use --engine onnxruntime"
        )
    least = engine.details.get("least_sm", 0)
    if f"sm_{device.sm}" not in engine.architectures or device.sm < least:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} for {built_for}, but the GPU here is "
            f"{device.name} (sm_{device.sm}): run `{rebuild_command(plan, engine, device.sm)}`"
        )
    name = engine.details.get("device", device.name)
    if name != device.name:
        raise EngineMismatch(
            f"{plan.path} has an engine of {engine.backend} tuned on {name}, but the GPU here is "
            f"{device.name}: run `{rebuild_command(plan, engine)}`"
        )
    cuda = engine.details.get("cuda")
    if cuda and device.cuda // 1000 < int(cuda):
        raise EngineMismatch(
            f"{plan.path} has an engine for CUDA {cuda}, but the driver here supports CUDA "
            f"{device.cuda // 1000}.{device.cuda % 1000 // 10}: update the NVIDIA driver"
        )
    return device


def deserialize(
    plan: Plan, engine: EngineInfo, flavour: Flavour, device: Device, runtime: Any
) -> Any:
    """Load an engine with TensorRT and check it against the manifest.

    Args:
        runtime: TensorRT's runtime; it must live as long as the engine.

    Raises:
        EngineMismatch: the engine cannot run on this GPU.
        DisaError: the engine is damaged.
    """
    with collect(flavour.trt) as messages, plan.read(engine.member) as data:
        reason = flavour.validity(runtime, data)
        if reason:
            raise EngineMismatch(
                f"{flavour} reports that the engine of the graph {engine.graph} cannot run on "
                f"{device.name} (sm_{device.sm}): {reason}; use --engine onnxruntime"
            )
        loaded = runtime.deserialize_cuda_engine(data)
        if loaded is None:
            raise EngineError(
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
    """Compare the tensors and profiles of a loaded engine with the manifest.

    Raises:
        DisaError: they differ.
    """
    mode = flavour.trt.TensorIOMode
    names = [loaded.get_tensor_name(index) for index in range(loaded.num_io_tensors)]
    for kind, specs in ((mode.INPUT, inputs), (mode.OUTPUT, outputs)):
        found = {name for name in names if loaded.get_tensor_mode(name) == kind}
        if found != {spec.name for spec in specs}:
            raise DamagedFile(
                f"the engine has the tensors {', '.join(sorted(found))}, but the plan has "
                f"{', '.join(spec.name for spec in specs)}: the plan is damaged, export it again"
            )
        for spec in specs:
            _check_tensor(loaded, spec)
    for name, shapes in profile.items():
        wanted = [shapes.minimum, shapes.usual, shapes.maximum]
        told = [tuple(shape) for shape in loaded.get_tensor_profile_shape(name, 0)]
        if told != wanted:
            raise DamagedFile(
                f"the engine takes {told} as {name}, but the plan has {wanted}: "
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
        raise DamagedFile(
            f"the engine's tensor {spec.name} is {dtype}{list(shape)} but the plan has {spec}: "
            "the plan is damaged, export it again"
        )
