"""Plans with a cached backbone are quantised by what their own graphs compute."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.calibration.quantization.options import QuantizeOptions
from disa.calibration.quantization.qdq import Format
from disa.calibration.quantization.quantize import quantize
from disa.calibration.quantization.result import Quantized
from disa.calibration.quantization.rounds import Round, rounds_of
from disa.engines.cpu import exact_int8
from disa.engines.plan.manifest import GraphInfo
from disa.engines.plan.plan import Plan
from disa.engines.plan.traits import GraphTraits, Role
from disa.engines.plan.writer import PlanWriter
from disa.errors import DisaError, EngineError
from disa.exporter.against import compare_with_checkpoint
from disa.exporter.graphs.check import TOLERANCES
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling.schedule import FittedSchedule

from ...conftest import GOLDEN, ExportGolden

PROMPTS = ["a dog", "a cat", "a bag"]
QUICK = QuantizeOptions(
    images=3, threads=1, tolerance=0.1, token_tolerance=0.5, spread_tolerance=0.2
)
OPTIONS = MaskedOptions(guidance_scale=2.0, steps="50:5")
ROLES = {"backbone": Role.ITERATION, "head": Role.STEP, "refresh": Role.REFRESH}
ROLES["reuse"] = Role.REUSE


def infos(*names: str) -> dict[str, GraphInfo]:
    return {name: GraphInfo(name, "", (), (), (), GraphTraits(ROLES[name])) for name in names}


def generate(path: Path, engine: str = "cpu", **options: Any) -> Any:
    pipe = Pipeline.from_plan(path, engine, threads=1)
    given: Any = (
        {"prompt": PROMPTS[:2]} if pipe.family.classes is None else {"class_labels": [1, 2]}
    )
    return pipe(**given, num_iterations=6, steps="4:2", seed=3, **options).latents


def distance(one: Any, other: Any) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_a_plan_without_a_memory_has_one_round() -> None:
    (only,) = rounds_of(infos("backbone", "head"), replace(OPTIONS, tolerance=0.5), 64)
    assert (only.graphs, only.refresh, only.where) == ({"backbone", "head"}, None, "")
    assert only.sampling.tolerance == 0


@pytest.mark.parametrize(
    ("default", "iterations", "expected"),
    [
        (None, 64, "9:0"),
        (None, 16, "4:0"),
        (None, 2, "2:0"),
        ("7:5", 64, "7:5"),
        ("1:0", 64, "9:0"),  # the other pass would never run
        ("9:16", 16, "4:0"),
    ],
)
def test_a_memory_has_a_round_with_both_passes(
    default: str | None, iterations: int, expected: str
) -> None:
    options = replace(OPTIONS, refresh=default, num_iterations=iterations)
    plain, refreshed = rounds_of(infos(*ROLES), options, iterations)
    assert (plain.graphs, plain.refresh) == ({"backbone", "head"}, None)
    assert (refreshed.graphs, refreshed.refresh) == ({"refresh", "reuse"}, expected)
    full = {refreshed.sampling.refresh_plan.is_full(i) for i in range(iterations)}
    assert full == {True, False}
    assert refreshed.where == f" with --refresh {expected}"


@pytest.mark.parametrize(("passes", "expected"), [((0, 2), "0,2"), ((0, 1, 2, 3), "2:0")])
def test_a_schedule_that_sets_full_passes(passes: tuple[int, ...], expected: str) -> None:
    """The plain round has none, so that the plain backbone runs, and keeps steps and tokens."""
    schedule = FittedSchedule((9, 7, 5, 4), (1, 3, 5, 7), passes)
    options = replace(OPTIONS, schedule=schedule, num_iterations=4)
    plain, refreshed = rounds_of(infos(*ROLES), options, 4)
    assert (plain.refresh, refreshed.refresh) == (None, expected)
    for each in (plain, refreshed):
        assert each.sampling.partition(16) == [1, 3, 5, 7]
        assert each.sampling.step_schedule.counts == schedule.counts


def test_one_iteration_has_no_cached_pass() -> None:
    expected = r"1 AR iteration have only full passes.* more iterations, or w"
    with pytest.raises(DisaError, match=expected):
        rounds_of(infos(*ROLES), OPTIONS, 1)


def test_a_graph_that_is_never_called_cannot_be_measured() -> None:
    unused = Round(OPTIONS, frozenset(("reuse",)), {"reuse": (0, 0)})
    with pytest.raises(DisaError, match="reuse is not called while images are generated, so"):
        unused.check_called("reuse")


MADE = [("mar", Format.INT8), ("mar", Format.FP8), ("harmon", Format.INT8)]


@pytest.fixture(scope="module", params=MADE, ids="-".join)
def pair(
    request: pytest.FixtureRequest,
    cached_backbone_plans: ExportGolden,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, Quantized]:
    """A plan and what became of it."""
    name, form = request.param
    path = tmp_path_factory.mktemp("quantised") / f"{name}.plan"
    source = cached_backbone_plans(name)
    prompts = PROMPTS if name == "harmon" else ()
    return source, quantize(source, path, replace(QUICK, form=form, prompts=prompts))


@pytest.fixture
def made(pair: tuple[Path, Quantized]) -> Quantized:
    return pair[1]


def test_both_passes_are_quantised_and_judged(made: Quantized) -> None:
    chosen = {graph.name: graph.selection for graph in made.graphs}
    assert {"backbone", "refresh", "reuse"} < set(chosen)
    for selection in chosen.values():
        assert selection.chosen
        assert 1e-4 < selection.error <= QUICK.tolerance
    assert made.tokens is not None
    assert made.refreshed is not None
    assert made.tokens.distance != made.refreshed.distance
    with Plan.open(made.path) as plan:
        plan.check()
        about = plan.manifest.raw["quantization"]
        assert plan.manifest.precision_of("reuse") == plan.manifest.precision
    assert about["token_distance"] == made.tokens.distance
    assert about["refreshed"] == {
        "refresh": made.refresh,
        "token_distance": made.refreshed.distance,
        "token_spread": made.refreshed.spread,
    }


def test_the_passes_share_their_weights(made: Quantized) -> None:
    """What the backbone left out or cuts in two is the rest."""
    with Plan.open(made.path) as plan:
        size = {name: member.size for name, member in plan.manifest.members.items()}
        for name in ("refresh", "reuse"):
            assert "graphs/backbone.data" in plan.graph(name).data
        own = sum(size.get(f"graphs/{name}.data", 0) for name in ("refresh", "reuse"))
        assert own < 0.5 * size["graphs/backbone.data"]


@pytest.mark.parametrize("refresh", ["3:2", "1:0"])
def test_images_stay_close(pair: tuple[Path, Quantized], refresh: str) -> None:
    source, made = pair
    exact = generate(source, refresh=refresh)
    rounded = generate(made.path, refresh=refresh)
    assert 1e-4 < distance(rounded, exact) < 0.3
    if refresh == "1:0":
        # Full passes are the plain loop, but for ranges that were measured apart.
        assert distance(rounded, generate(made.path)) < 0.2


def test_the_passes_are_compared_with_the_checkpoint(pair: tuple[Path, Quantized]) -> None:
    source, made = pair
    folder = GOLDEN / ("mar" if source.name.startswith("mar") else "harmon")
    compared = compare_with_checkpoint(made.path, folder / "checkpoint.pth")
    assert {"backbone", "refresh", "reuse"} <= {each.graph for each in compared.comparisons}
    for each in compared.comparisons:
        assert each.relative < TOLERANCES[compared.precision], each
        assert each.alone < 1e-5, each


def test_openvino_runs_them_or_refuses(made: Quantized) -> None:
    with Plan.open(made.path) as plan:
        precision = plan.manifest.precision
    if precision == "int8" and not exact_int8():
        with pytest.raises(EngineError, match="no VNNI"):
            generate(made.path, "openvino", refresh="3:2")
        return
    expected = generate(made.path, refresh="3:2")
    assert distance(generate(made.path, "openvino", refresh="3:2"), expected) < 0.2


def test_a_default_of_refresh_does_not_hide_the_backbone(
    golden_plan: ExportGolden, tmp_path: Path
) -> None:
    """The plain graphs are measured in plain runs whatever the plan's defaults are."""
    source = tmp_path / "default.plan"
    cached = golden_plan("mar", cached_backbone=True)
    with Plan.open(cached) as plan, PlanWriter.extend(plan, source) as writer:
        writer.content["defaults"] = {**plan.manifest.defaults, "refresh": "3:2"}
    made = quantize(source, tmp_path / "int8.plan", replace(QUICK, check=False))
    assert made.refresh == "3:2"
    expected = generate(source, refresh="1:0")
    assert distance(generate(made.path, refresh="1:0"), expected) < 0.3
