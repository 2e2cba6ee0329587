"""Recorded runs of all families, drawn by way of the device sessions on a fake device."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.engines.gpu.profile import Range
from disa.engines.gpu.shared import SharedGpu
from disa.engines.plan.plan import Plan
from disa.engines.plan.traits import HOST_ONLY
from disa.engines.tensorrt.load import Host, open_engine, usable_backend
from disa.runtime.pipeline import Pipeline
from disa.runtime.replay.reference import RecordedRun
from disa.runtime.replay.registry import REPLAYS

from ..gpu.fake_device import FakeDevice
from .fake_tensorrt import fake_flavour
from .graphs import with_fake_engines

GOLDEN = Path(__file__).parents[2] / "golden"
RUNS = {
    "mar": "linear_cfg",
    "flowar_s": "guided",
    "xar": "guided",
    "harmon": "reference_a",
}


def open_pipeline(path: Path, backend: str, device: FakeDevice) -> Pipeline:
    """A pipeline whose every session is a TensorRT session."""
    flavour = fake_flavour(device, backend == "tensorrt-rtx")
    host, plan = Host(lambda name: flavour, SharedGpu(lambda: device)), Plan.open(path)
    graphs = [n for n, g in plan.manifest.graphs.items() if g.traits.role not in HOST_ONLY]
    return Pipeline(plan, {name: open_engine(plan, name, backend, host) for name in graphs})


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("name", RUNS)
# An engine that is smaller than the recorded batch: every call is cut and put together again.
@pytest.mark.parametrize("batch", [Range(1, 2, 8), Range(1, 1, 1)])
def test_recorded_runs(
    name: str, backend: str, batch: Range, golden_plan: Callable[..., Path], tmp_path: Path
) -> None:
    path = shutil.copy(golden_plan(name), tmp_path / "p.plan")
    pipe = open_pipeline(with_fake_engines(Path(path), backend, batch), backend, FakeDevice())
    reference = RecordedRun(GOLDEN / name / f"{RUNS[name]}.npz")
    found = REPLAYS[pipe.plan.manifest.family](pipe, reference)
    assert max(float(entry.relative) for entry in found) < 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_engines_of_all_graphs_that_a_gpu_runs_are_usable(
    name: str, golden_plan: Callable[..., Path], tmp_path: Path
) -> None:
    """No engines are built for the graphs of the host's processor, and none are missed."""
    path = Path(shutil.copy(golden_plan(name), tmp_path / "p.plan"))
    flavour = fake_flavour(device := FakeDevice(), rtx=False)
    host = Host(lambda name: flavour, SharedGpu(lambda: device))
    with Plan.open(path) as plan:
        assert usable_backend(plan, host) is None
    with Plan.open(with_fake_engines(path, "tensorrt", Range(1, 2, 8))) as plan:
        assert usable_backend(plan, host) == "tensorrt"


def test_every_engine_tells_its_own_precision(
    golden_plan: Callable[..., Path], tmp_path: Path
) -> None:
    """Some graphs stay in fp32 in a plan of lower precision."""
    path = Path(shutil.copy(golden_plan("mar", precision="fp16"), tmp_path / "p.plan"))
    pipe = open_pipeline(
        with_fake_engines(path, "tensorrt", Range(1, 2, 4)), "tensorrt", FakeDevice()
    )
    told = {name: session.description.split()[2] for name, session in pipe.sessions.items()}
    assert told == {name: pipe.plan.manifest.precision_of(name) for name in told}
    assert {told["timestep"], told["backbone"]} == {"fp32", "fp16"}


def test_nothing_waits_before_the_images_are_wanted(
    golden_plan: Callable[..., Path], tmp_path: Path
) -> None:
    path = shutil.copy(golden_plan("mar"), tmp_path / "p.plan")
    device = FakeDevice()
    path = with_fake_engines(Path(path), "tensorrt", Range(1, 2, 4))
    pipe = open_pipeline(path, "tensorrt", device)
    # Few iterations, so that the GPU is never as many uploads behind as the host allows.
    pipe([1, 2], num_iterations=3, steps="6:2", batch_size=2)
    before = device.waits
    pipe([1, 2], num_iterations=3, steps="6:2", batch_size=2)
    assert device.waits - before <= 1 + len(pipe.plan.graph("decoder").outputs)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("mar", 10.0), ("flowar_s", 0.75), ("flowar_l", 1.5), ("xar", 1.25)]
)
def test_adaptive_steps_are_those_of_the_host(
    name: str, tolerance: float, golden_plan: Callable[..., Path], tmp_path: Path
) -> None:
    """Tokens that are done leave the batch; what stays is the same on the device."""
    path = Path(shutil.copy(golden_plan(name), tmp_path / "p.plan"))
    options: dict[str, Any] = {"steps": "12:8", "guidance_scale": 2.0, "tolerance": tolerance}
    if name == "mar":
        options["num_iterations"] = 4
    host = Pipeline.from_plan(path, "cpu")([1, 2, 3], **options)
    fixed = Pipeline.from_plan(path, "cpu")([1, 2, 3], **{**options, "tolerance": 0.0})
    # Room for two of the three images.
    engines = with_fake_engines(path, "tensorrt", Range(1, 2, 2))
    drawn = open_pipeline(engines, "tensorrt", FakeDevice())([1, 2, 3], **options)
    assert drawn.stats.head_rows == host.stats.head_rows < fixed.stats.head_rows
    scale = np.abs(host.latents).max()
    assert np.abs(drawn.latents - host.latents).max() < 1e-4 * scale


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("batch", [Range(1, 2, 8), Range(1, 1, 1)])
def test_a_cached_backbone(
    cached_backbone_plan: Path, backend: str, batch: Range, tmp_path: Path
) -> None:
    path = Path(shutil.copy(cached_backbone_plan, tmp_path / "p.plan"))
    host = Pipeline.from_plan(path, "cpu")
    device = open_pipeline(with_fake_engines(path, backend, batch), backend, FakeDevice())
    given: dict[str, Any] = {"class_labels": [1, 2, 3]}
    if host.family.classes is None:
        given = {"prompt": ["a dog", "a cat", "a bag"]}
    for scale in (1.0, 2.5):
        options = {**given, "num_iterations": 8, "steps": "4:2", "guidance_scale": scale}
        expected = host(**options, refresh="3:2").latents
        found = device(**options, refresh="3:2").latents
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
        assert np.abs(host(**options).latents - expected).max() > 1e-3 * np.abs(expected).max()


def test_caches_stay_on_the_device(golden_plan: Callable[..., Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(golden_plan("mar", cached_backbone=True), tmp_path / "p.plan"))
    device = FakeDevice()
    path = with_fake_engines(path, "tensorrt", Range(1, 2, 4))
    pipe = open_pipeline(path, "tensorrt", device)
    options: dict[str, Any] = {"num_iterations": 3, "steps": "6:2", "refresh": "0:1"}
    pipe([1, 2], batch_size=2, **options)
    before = device.waits
    pipe([1, 2], batch_size=2, **options)
    assert device.waits - before <= 1 + len(pipe.plan.graph("decoder").outputs)
