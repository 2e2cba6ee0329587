"""All graphs of real plans, built with TensorRT-RTX for all its usual architectures."""

from collections.abc import Callable
from pathlib import Path

import pytest

from disa.engines.gpu.profile import Range, dimensions
from disa.engines.plan.plan import Plan
from disa.engines.plan.traits import HOST_ONLY
from disa.engines.tensorrt import builder
from disa.engines.tensorrt.build import EngineOptions, add_engines

GOLDEN = ("mar", "mar_patch2", "flowar_s", "flowar_l", "xar", "harmon")
PRECISIONS = ("fp32", "fp16", "bf16")
TARGETS = (80, 86, 89, 120)


def check_plan(path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build engines for the plan at `path`, write it to `output` and compare the two.

    What TensorRT parsed is compared with the manifest while building: names, types, and
    which dimensions are dynamic.
    """
    options = EngineOptions("tensorrt-rtx", TARGETS, Range(1, 2, 4))
    built = add_engines(path, options, output)
    with Plan.open(path) as before, Plan.open(output) as after:
        after.check()
        manifest = after.manifest
        assert manifest.graphs == before.manifest.graphs
        names = [n for n, g in manifest.graphs.items() if g.traits.role not in HOST_ONLY]
        assert [engine.graph for engine in manifest.engines] == names
        ranges = dimensions(manifest.tokens, manifest.defaults, options.batch)
        for engine, new in zip(manifest.engines, built, strict=True):
            assert engine == new.info
            assert engine.architectures == ("sm_80", "sm_86", "sm_89", "sm_120")
            assert engine.precision == manifest.precision
            assert len(after.read(engine.member)) == new.size > 0
            (profile,) = engine.profiles
            for spec in manifest.graphs[engine.graph].inputs:
                shapes = profile[spec.name]
                for axis, name in enumerate(spec.shape):
                    sizes = (shapes.minimum[axis], shapes.usual[axis], shapes.maximum[axis])
                    assert sizes == (
                        (name,) * 3
                        if isinstance(name, int)
                        else (ranges[name].minimum, ranges[name].usual, ranges[name].maximum)
                    )
        for graph in before.manifest.graphs.values():
            for member in (graph.onnx, *graph.data):
                assert bytes(after.read(member)) == bytes(before.read(member))
    monkeypatch.setattr(builder, "build", None)
    assert all(new.cached for new in add_engines(output, options))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_models(
    name: str,
    precision: str,
    golden_plan: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_plan(golden_plan(name, precision=precision), tmp_path / "with.plan", monkeypatch)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_demo_model(
    precision: str,
    demo_plan: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_plan(demo_plan(precision), tmp_path / "with.plan", monkeypatch)


def test_a_cached_backbone(
    golden_plan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = golden_plan("mar", cached_backbone=True)
    check_plan(source, tmp_path / "with.plan", monkeypatch)
