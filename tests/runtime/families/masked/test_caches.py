"""A cached backbone, through the exported graphs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.engines.cpu import fast_bfloat16
from disa.engines.plan.plan import Plan
from disa.engines.session import TensorSpec
from disa.errors import DisaError, InvalidRequest
from disa.exporter.export import export
from disa.runtime.families.masked.caches import check_cached_backbone
from disa.runtime.generation import Request, Sample
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.stats import Stats

from ....conftest import GOLDEN, ExportGolden

PROMPTS = ["a dog", "a cat", "a bag"]
QUICK: dict[str, Any] = {"num_iterations": 10, "steps": "4:2", "seed": 3}


@pytest.fixture(scope="module")
def pipe(cached_backbone_plan: Path) -> Pipeline:
    return Pipeline.from_plan(cached_backbone_plan, "cpu")


def generate(pipe: Pipeline, images: int, **options: Any) -> Any:
    """Latents of some images, of classes or prompts of one length."""
    if pipe.family.classes is None:
        return pipe(prompt=PROMPTS[:images], **{**QUICK, **options}).latents
    return pipe(list(range(1, images + 1)), **{**QUICK, **options}).latents


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_refreshed_at_every_iteration_it_is_the_plain_loop(pipe: Pipeline, scale: float) -> None:
    plain = generate(pipe, 3, guidance_scale=scale)
    full = generate(pipe, 3, guidance_scale=scale, refresh="1:0")
    assert np.abs(full - plain).max() < 1e-5 * np.abs(plain).max()


def test_other_precisions(golden_plan: ExportGolden) -> None:
    """The export compares every graph; this is a run of them."""
    narrow, full = (
        Pipeline.from_plan(golden_plan("mar", precision, cached_backbone=True), "openvino")
        for precision in ("bf16", "fp32")
    )
    expected = generate(full, 2, refresh="3:2")
    error = np.linalg.norm(generate(narrow, 2, refresh="3:2") - expected)
    assert error < 0.1 * np.linalg.norm(expected)


@pytest.mark.skipif(not fast_bfloat16(), reason="needs a processor with bf16")
def test_caches_of_bf16_passes_are_in_bf16(cached_backbone_plan: Path) -> None:
    narrow = Pipeline.from_plan(cached_backbone_plan, "openvino")
    exact = Pipeline.from_plan(cached_backbone_plan, "openvino", exact=True)
    for pipe, kind in ((narrow, "uint16"), (exact, "float32")):
        caches = pipe.plan.manifest.cache_tensors("reuse")
        given = {spec.dtype for spec in pipe.family.session("reuse").inputs if spec.name in caches}
        assert given == {kind}
    expected = generate(exact, 2, refresh="3:2")
    error = np.linalg.norm(generate(narrow, 2, refresh="3:2") - expected)
    assert 1e-5 * np.linalg.norm(expected) < error < 0.1 * np.linalg.norm(expected)


def test_it_approximates(pipe: Pipeline) -> None:
    plain = generate(pipe, 3, guidance_scale=2.5)
    errors = [
        np.linalg.norm(generate(pipe, 3, guidance_scale=2.5, refresh=each) - plain)
        / np.linalg.norm(plain)
        for each in ("2:4", "0:1")
    ]
    assert 1e-5 < errors[0] < 0.2
    assert errors[0] < errors[1]


def test_an_image_does_not_depend_on_its_company(pipe: Pipeline) -> None:
    """Samples of other plans join and leave; each image is that of its own run."""
    family, stats = pipe.family, Stats()
    conditions: list[Any] = [1, 2, 3] if family.classes else PROMPTS
    plans = ("3:2", "3:2", None, "0:1", "1:0")
    common: dict[str, Any] = {"num_iterations": 8, "steps": "3:2", "guidance_scale": 2.0}
    requests = [
        Request(conditions[i % 3], pipe.options(**common, refresh=each), PhiloxNoise(7, i))
        for i, each in enumerate(plans)
    ]
    started: list[Sample] = []
    for request in requests:
        started += family.start([request], stats)
        family.step([sample for sample in started if not sample.done], stats)
    while running := [sample for sample in started if not sample.done]:
        family.step(running, stats)
    for request, together in zip(requests, family.finish(started, stats), strict=True):
        alone = pipe.generate([request], stats)[0].latents
        np.testing.assert_array_equal(together.latents, alone, err_msg=str(request.options))


def test_graphs_are_loaded_when_they_are_needed(pipe: Pipeline) -> None:
    fresh = Pipeline.from_plan(pipe.plan.path, "cpu")
    generate(fresh, 1)
    assert not {"refresh", "reuse"} & set(fresh.sessions)
    generate(fresh, 1, refresh="4:2")
    assert {"refresh", "reuse"} <= set(fresh.sessions)


def test_a_plan_without_the_graphs(golden_plan: ExportGolden) -> None:
    plain = Pipeline.from_plan(golden_plan("mar"), "cpu")
    # Clients of a server see this message, but not the path of the plan.
    with pytest.raises(DisaError, match=r"^[\w.-]+ has no cached backbone.*--cached-backbone"):
        plain(1, refresh="9:5", **QUICK)


def test_a_plan_of_an_earlier_version_is_refused(cached_backbone_plan: Path) -> None:
    """Its caches had another layout: one tensor for all layers, the tokens first."""
    with Plan.open(cached_backbone_plan) as plan:
        check_cached_backbone(plan)
        graph = plan.graph("reuse")
        kept = [spec for spec in graph.inputs if not spec.name.startswith("decoder_")]
        shape = (320, 12, 2, "batch", 12, 64)
        earlier = (*kept, TensorSpec("decoder_cache", "float32", shape))
        graphs = {**plan.manifest.graphs, "reuse": replace(graph, inputs=earlier)}
        plan.manifest = replace(plan.manifest, graphs=graphs)
        with pytest.raises(InvalidRequest, match=r"earlier version of disa.*--cached-backbone"):
            check_cached_backbone(plan)


def test_families_with_caches_of_their_own(tmp_path: Path) -> None:
    folder = GOLDEN / "xar"
    with pytest.raises(DisaError, match="leave out --cached-backbone"):
        export(
            folder / "checkpoint.pth",
            tmp_path / "xar.plan",
            config=folder / "architecture.json",
            cached_backbone=True,
        )
