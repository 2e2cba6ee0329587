from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from disa.engines.gpu.device import Device
from disa.engines.gpu.profile import Range, dimensions, graph_profile
from disa.engines.gpu.shared import SharedGpu
from disa.engines.plan.plan import Plan, PlanWriter
from disa.engines.tensorrt.check import EngineMismatch
from disa.engines.tensorrt.describe import describe
from disa.engines.tensorrt.flavour import Flavour
from disa.engines.tensorrt.load import Host, RuntimeCache, open_engine, unusable, usable_backend
from disa.errors import DisaError

from ..gpu.fake_device import FakeDevice
from . import fake_tensorrt
from .fake_tensorrt import fake_engine, fake_flavour
from .graphs import HEAD_INPUTS, MANIFEST_TOKENS, head, write_plan

NAMES = [spec.name for spec in HEAD_INPUTS]


def plan_of(folder: Path, backend: str = "tensorrt", **options: object) -> Plan:
    path = write_plan(folder / "p.plan", names=("head",), backend=backend, **options)  # type: ignore[arg-type]
    return Plan.open(path)


def host_with(
    device: FakeDevice | None, rtx: bool = False, version: str = "99.1", reason: str = ""
) -> Host:
    flavour: Flavour | str = reason or fake_flavour(device or FakeDevice(), rtx, version)
    return Host(lambda name: flavour, SharedGpu(lambda: device))


def refusal(plan: Plan, host: Host, backend: str = "tensorrt") -> str:
    """The one sentence; the same when asked beforehand."""
    with pytest.raises(EngineMismatch) as raised:
        open_engine(plan, "head", backend, host)
    assert unusable(plan, backend, host) == str(raised.value)
    assert usable_backend(plan, host) is None
    return str(raised.value)


def test_a_module_that_cannot_be_imported(tmp_path: Path) -> None:
    text = refusal(plan_of(tmp_path), host_with(FakeDevice(), reason="libnvinfer.so is missing"))
    assert "engine of tensorrt 99.1" in text
    assert "libnvinfer.so is missing" in text
    assert "pip install tensorrt==99.1" in text


def test_another_version(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    text = refusal(plan, host_with(FakeDevice(), version="99.2"))
    assert "tensorrt 99.1" in text
    assert "TensorRT 99.2 is installed" in text
    assert f"disa-export --add-engine {plan.path} --engine tensorrt`" in text


def test_no_gpu(tmp_path: Path) -> None:
    text = refusal(plan_of(tmp_path), host_with(None))
    assert "for sm_89, but this machine has no NVIDIA GPU" in text
    assert "--engine onnxruntime" in text


@pytest.mark.parametrize(("backend", "gpu"), [("tensorrt", ""), ("tensorrt-rtx", " --gpu sm_86")])
def test_another_gpu(tmp_path: Path, backend: str, gpu: str) -> None:
    plan = plan_of(tmp_path, backend)
    text = refusal(plan, host_with(FakeDevice(sm=86), backend == "tensorrt-rtx"), backend)
    assert "for sm_89, but the GPU here is Fake GPU (sm_86)" in text
    assert f"disa-export --add-engine {plan.path} --engine {backend}{gpu}`" in text


def test_below_the_least_architecture_although_it_is_listed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, architectures=("sm_75", "sm_89"))
    assert "sm_75" in refusal(plan, host_with(FakeDevice(sm=75)))


def test_an_old_driver(tmp_path: Path) -> None:
    text = refusal(plan_of(tmp_path), host_with(FakeDevice(cuda=12080)))
    assert "an engine for CUDA 13, but the driver here supports CUDA 12.8" in text


def test_no_engine_of_that_backend(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    host = host_with(FakeDevice(), rtx=True)
    assert "no engine of tensorrt-rtx for the graph head" in unusable(plan, "tensorrt-rtx", host)
    assert "--gpu sm_89" in unusable(plan, "tensorrt-rtx", host)


def test_what_rtx_says_of_the_gpu(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "tensorrt-rtx", architectures=("sm_90",))
    with pytest.raises(EngineMismatch, match=r"cannot run on Fake GPU \(sm_90\): unsupported cc"):
        open_engine(plan, "head", "tensorrt-rtx", host_with(FakeDevice(sm=90), rtx=True))


def test_a_damaged_engine(tmp_path: Path) -> None:
    path = tmp_path / "p.plan"
    with plan_of(tmp_path) as plan:
        offset = plan.offset(plan.manifest.engines[0].member)
    data = bytearray(path.read_bytes())
    data[offset + 100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DisaError, match=r"head\.engine does not match"):
        open_engine(Plan.open(path), "head", "tensorrt", host_with(FakeDevice()))


def test_an_engine_that_tensorrt_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes) -> dict[str, Any]:
        raise ValueError

    monkeypatch.setattr(fake_tensorrt, "read_engine", fail)
    with pytest.raises(DisaError, match=r"cannot load the engine .* header is damaged; run"):
        open_engine(plan_of(tmp_path), "head", "tensorrt", host_with(FakeDevice()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"inputs": []}, "has the tensors , but"),
        ({"outputs": [["other", "float32", ["rows", 4]]]}, "has the tensors other, but"),
        ({"outputs": [["next_x", "int64", ["rows", 4]]]}, r"next_x is int64\[-1, 4\]"),
        ({"outputs": [["next_x", "float32", ["rows", 5]]]}, r"next_x is float32\[-1, 5\]"),
        ({"profile": {name: [[1, 4], [2, 4], [3, 4]] for name in NAMES}}, "the engine takes"),
    ],
)
def test_an_engine_with_other_tensors_than_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], text: str
) -> None:
    read_engine = fake_tensorrt.read_engine
    monkeypatch.setattr(fake_tensorrt, "read_engine", lambda data: read_engine(data) | change)
    plan = plan_of(tmp_path)
    with pytest.raises(DisaError, match=text):
        open_engine(plan, "head", "tensorrt", host_with(FakeDevice()))


def test_the_engine_that_fits_is_taken_and_its_backend_found(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    host = host_with(FakeDevice())
    assert usable_backend(plan, host) == "tensorrt"
    assert open_engine(plan, "head", "tensorrt", host).ranges["rows"].maximum == 64


def test_the_newest_engine_that_fits_is_taken(tmp_path: Path) -> None:
    """An older one stays in the plan if it is for other GPUs too."""
    ranges = dimensions(MANIFEST_TOKENS, {"num_iterations": 4}, Range(1, 2, 9))
    profile = graph_profile("head", HEAD_INPUTS, ranges)
    path = tmp_path / "new.plan"
    with (
        plan_of(tmp_path, architectures=("sm_86", "sm_89")) as plan,
        PlanWriter.extend(plan, path) as writer,
    ):
        model, graph = head("fp32").SerializeToString(), plan.graph("head")
        (old,) = plan.manifest.engines
        newer = {"architectures": ("sm_89",), "profiles": (profile,), "member": "engines/new"}
        writer.add_engine(replace(old, **newer), fake_engine(model, graph, profile))
    for sm, rows in ((89, 144), (86, 64)):
        host = host_with(FakeDevice(sm=sm))
        assert open_engine(Plan.open(path), "head", "tensorrt", host).ranges["rows"].maximum == rows


def test_the_inspector_tells_layers_and_memory(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    found = describe(plan, plan.manifest.engines[0], host_with(FakeDevice()))
    assert found == {"layers": ["one", "two"], "memory": {"activations": 1000}}


def test_kernels_made_at_run_time_are_kept(tmp_path: Path, cache: Path) -> None:
    plan, host = plan_of(tmp_path, "tensorrt-rtx"), host_with(FakeDevice(), rtx=True)
    session = open_engine(plan, "head", "tensorrt-rtx", host)
    session.engine.create_context(loop=False)
    kept = session.engine.cache
    assert isinstance(kept, RuntimeCache)
    assert session.engine.loaded.configs[0].cache is kept._handle
    path = kept.path
    assert path.is_relative_to(cache)
    del session, kept
    assert path.read_bytes() == b"empty+"
    again = open_engine(plan, "head", "tensorrt-rtx", host)
    again.engine.create_context(loop=True)
    assert again.engine.cache._handle.content == b"empty+"


def test_device_is_the_interface_of_the_fake() -> None:
    wanted = {name for name in vars(Device) if not name.startswith("_")}
    assert wanted <= set(dir(FakeDevice))
