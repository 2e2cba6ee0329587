from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from disa.calibration.quantization.matmuls import Matmul, find_matmuls
from disa.calibration.quantization.options import QuantizeOptions
from disa.calibration.quantization.plan_graph import PlanGraph
from disa.calibration.quantization.qdq import Format
from disa.calibration.quantization.quantize import _Job, quantize
from disa.calibration.quantization.result import Quantized
from disa.engines.ort.session import OnnxRuntimeSession
from disa.engines.plan.plan import Plan
from disa.errors import DisaError, InvalidRequest
from disa.exporter.against import compare_with_checkpoint
from disa.exporter.export import export
from disa.exporter.graphs.check import TOLERANCES
from disa.runtime.pipeline import Pipeline

from ...conftest import GOLDEN

Plans = Callable[..., Path]
HEAD = ("head", "modulation", "modulated_head")
QUICK = QuantizeOptions(images=2, threads=1, tolerance=0.05, spread_tolerance=0.05)


@pytest.fixture(scope="module", params=list(Format))
def form(request: pytest.FixtureRequest) -> Format:
    return Format(request.param)


@pytest.fixture(scope="module")
def made(form: Format, golden_plan: Plans, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    path = tmp_path_factory.mktemp("quantized") / f"mar.{form}.plan"
    return quantize(golden_plan("mar"), path, replace(QUICK, form=form, tolerance=0.1))


def optimised(plan: Plan, graph: str, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime really runs for a graph."""
    opened = PlanGraph(plan, plan.graph(graph), folder)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(folder))
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(
        opened.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    model = onnx.load(folder / "optimised.onnx", load_external_data=False)
    return Counter(node.op_type for node in model.graph.node)


def test_a_golden_plan_stays_close(form: Format, made: Quantized, golden_plan: Plans) -> None:
    assert {graph.name for graph in made.graphs} == {"backbone", "head"}
    limit = {Format.INT8: 0.03, Format.FP8: 0.08}[form]
    for graph in made.graphs:
        assert not graph.selection.left_out
        assert 1e-4 < graph.selection.error < limit
    assert made.tokens is not None
    assert 1e-4 < made.tokens.distance < limit
    assert abs(made.tokens.spread) < made.tokens.distance
    options: dict[str, Any] = {"num_iterations": 4, "steps": "4:2", "seed": 3}
    exact = Pipeline.from_plan(golden_plan("mar"), "cpu")([1, 2], **options).latents
    rounded = Pipeline.from_plan(made.path, "cpu")([1, 2], **options).latents
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    assert 1e-4 < error < 5 * limit


def test_the_plan_says_what_it_is(form: Format, made: Quantized) -> None:
    with Plan.open(made.path) as plan:
        plan.check()
        manifest = plan.manifest
        assert manifest.precision == form.value
        assert manifest.precision_of("head") == form.value
        assert manifest.precision_of("timestep") == manifest.precision_of("decoder") == "fp32"
        about = manifest.raw["quantization"]
        assert about["rest"] == "fp32"
        assert made.tokens is not None
        assert about["token_distance"] == made.tokens.distance
        assert about["token_spread"] == made.tokens.spread
        assert about["graphs"]["head"]["left_out"] == []
        assert OnnxRuntimeSession(plan, "head").description.endswith(
            f"Provider {form}, the rest in fp32"
        )
        assert OnnxRuntimeSession(plan, "timestep").description.endswith("Provider fp32")
    assert "CPUExecutionProvider fp32; " in Pipeline.from_plan(made.path, "cpu").engine


def test_an_image_does_not_depend_on_its_batch(form: Format, made: Quantized) -> None:
    compared = compare_with_checkpoint(made.path, GOLDEN / "mar" / "checkpoint.pth")
    precision, found = compared.precision, compared.comparisons
    assert precision == form.value
    for comparison in found:
        assert comparison.relative < TOLERANCES[precision]
        assert comparison.alone < 1e-5


def test_both_ways_of_the_head_are_quantised_alike(form: Format, made: Quantized) -> None:
    with Plan.open(made.path) as plan:
        assert {plan.manifest.precision_of(name) for name in HEAD} == {form.value}
        sessions = {name: OnnxRuntimeSession(plan, name) for name in plan.manifest.graphs}
        plain = {name: sessions[name] for name in sessions if name not in HEAD[1:]}
        found = [
            Pipeline(plan, given)([1], num_iterations=8, steps="4:2", seed=3).latents
            for given in (sessions, plain)
        ]
        np.testing.assert_allclose(*found, rtol=0, atol=1e-4 * np.abs(found[0]).max())
        # Only what is too small to be shared is there twice.
        (whole,), members = plan.graph("head").data, plan.manifest.members
        halves = {member for name in HEAD[1:] for member in plan.graph(name).data} - {whole}
        assert sum(members[member].size for member in halves) < members[whole].size / 4


def test_weights_are_external_and_small(
    form: Format, made: Quantized, golden_plan: Plans, tmp_path: Path
) -> None:
    del form
    with Plan.open(made.path) as plan, Plan.open(golden_plan("mar")) as full:
        for name in ("backbone", "head"):
            graph, whole = plan.graph(name), full.graph(name)
            size = sum(plan.manifest.members[member].size for member in graph.data)
            assert size < 0.5 * sum(full.manifest.members[m].size for m in whole.data)
            opened = PlanGraph(plan, graph, tmp_path)
            inside = [t for t in opened.model.graph.initializer if not t.external_data]
            assert max(len(tensor.raw_data) for tensor in inside) < 8192


def test_int8_products_run_on_integer_kernels(golden_plan: Plans, tmp_path: Path) -> None:
    """FlowAR's gated MLP and modulations multiply one tensor by several matrices."""
    for name in ("mar", "flowar_s"):
        made = quantize(golden_plan(name), tmp_path / f"{name}.plan", replace(QUICK, check=False))
        for graph in made.graphs:
            folder = tmp_path / f"{name}-{graph.name}"
            folder.mkdir()
            with Plan.open(made.path) as plan:
                found = optimised(plan, graph.name, folder)
            assert found["MatMulIntegerToFloat"] == len(graph.selection.chosen)
            assert found["DequantizeLinear"] == 0


def test_sensitive_products_are_left_out(golden_plan: Plans, tmp_path: Path) -> None:
    source = golden_plan("mar")
    strict = quantize(source, tmp_path / "strict.plan", replace(QUICK, tolerance=0.008))
    for graph in strict.graphs:
        selection = graph.selection
        assert selection.left_out
        assert selection.chosen
        assert selection.error <= 0.008 < selection.error_of_all
    with Plan.open(tmp_path / "strict.plan") as plan:
        left_out = plan.manifest.quantized["head"]["left_out"]
        assert left_out == [p.node for p in strict.graphs[1].selection.left_out]
        opened = PlanGraph(plan, plan.graph("head"), tmp_path)
        assert {p.node for p in opened.matmuls} == set(left_out)


def test_too_large_a_difference_is_refused(golden_plan: Plans, tmp_path: Path) -> None:
    output = tmp_path / "bad.plan"
    for options, told in (
        (
            replace(QUICK, token_tolerance=1e-3),
            r"are 0\.\d+ standard deviations away from .* 0\.001 is",
        ),
        (
            replace(QUICK, spread_tolerance=1e-9),
            r"standard deviation by [+-]\d\.\d% from .* 1e-09 is",
        ),
    ):
        with pytest.raises(DisaError, match=told):
            quantize(golden_plan("mar"), output, options)
    assert not list(tmp_path.iterdir())


def test_tokens_are_compared_if_the_head_stays_in_fp32(
    golden_plan: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outside_the_head(model: Any) -> list[Matmul]:
        steps = "noise" in {value.name for value in model.graph.input}
        return [] if steps else find_matmuls(model)

    monkeypatch.setattr("disa.calibration.quantization.plan_graph.find_matmuls", outside_the_head)
    made = quantize(golden_plan("mar"), tmp_path / "m.plan", replace(QUICK, tolerance=0.1))
    assert [graph.name for graph in made.graphs] == ["backbone"]
    assert made.tokens is not None
    assert 1e-4 < made.tokens.distance < 0.03
    options = replace(QUICK, tolerance=0.1, token_tolerance=1e-5)
    with pytest.raises(DisaError, match="standard deviations away"):
        quantize(golden_plan("mar"), tmp_path / "n.plan", options)


def test_a_graph_that_runs_once_is_judged_by_its_only_call(
    golden_plan: Plans, tmp_path: Path
) -> None:
    options = replace(QUICK, tolerance=0.012, token_tolerance=9, spread_tolerance=9)
    made = quantize(golden_plan("xar"), tmp_path / "x.plan", options)
    effects = {graph.name: graph.selection.effects for graph in made.graphs}
    assert len(effects["timestep"]) > 1
    assert all(0 < effect < 0.1 for effect in effects["timestep"].values())


def test_adaptive_steps_do_not_blur_the_comparison(tmp_path: Path) -> None:
    """Where tokens left their loop one by one, each would be compared after a part of it only."""
    distances = []
    for strategy in ("adaptive", "linear"):
        plan = tmp_path / f"{strategy}.plan"
        defaults = {"strategy": strategy, "steps": "20:20", "num_iterations": 4}
        folder = GOLDEN / "mar"
        export(
            folder / "checkpoint.pth",
            plan,
            config=folder / "architecture.json",
            defaults=defaults,
            check=False,
        )
        made = quantize(plan, tmp_path / "quantised.plan", QUICK)
        assert made.tokens is not None
        distances.append(made.tokens.distance)
    assert distances[0] == distances[1]


def test_a_plan_that_stays_as_it_is_is_not_written(golden_plan: Plans, tmp_path: Path) -> None:
    with pytest.raises(DisaError, match=r"nothing in .* can be quantised to int8 within .* 1e-09"):
        quantize(golden_plan("mar"), tmp_path / "x.plan", replace(QUICK, tolerance=1e-9))
    assert not list(tmp_path.iterdir())


def test_damage_does_not_get_a_new_checksum(golden_plan: Plans, tmp_path: Path) -> None:
    with Plan.open(golden_plan("mar")) as plan:
        (member,) = plan.graph("backbone").data
        place = plan.offset(member) + len(plan.read(member)) // 2
    damaged = tmp_path / "damaged.plan"
    data = bytearray(golden_plan("mar").read_bytes())
    data[place] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(DisaError, match=r"the checksum of graphs/backbone\.data does not match"):
        quantize(damaged, tmp_path / "x.plan", QUICK)
    assert list(tmp_path.iterdir()) == [damaged]


def test_prompts_for_a_model_that_takes_classes(pixel_plan: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="takes classes, not prompts"):
        quantize(pixel_plan, tmp_path / "x.plan", replace(QUICK, prompts=("a boot",)))
    assert not list(tmp_path.iterdir())


def test_only_fp32_plans_are_taken(golden_plan: Plans, tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="is in fp16: quantise an fp32 plan"):
        quantize(golden_plan("mar_patch2", "fp16"), tmp_path / "x.plan", QUICK)
    with pytest.raises(DisaError, match="needs prompts for calibration: give some with --prompt"):
        quantize(golden_plan("harmon"), tmp_path / "x.plan", QUICK)
    assert not list(tmp_path.iterdir())


def test_roles_say_what_may_be_quantised(golden_plan: Plans, tmp_path: Path) -> None:
    """A third of xAR is in its timestep graph; FlowAR's modulation and all decoders run once."""
    found = {}
    for name in ("xar", "flowar_s"):
        (folder := tmp_path / name).mkdir()
        with Plan.open(golden_plan(name)) as plan:
            job = _Job(plan, folder, QuantizeOptions(images=1, threads=1), lambda stage: None)
            found[name] = set(job.graphs)
    assert found == {"xar": {"timestep", "prefill", "head"}, "flowar_s": {"backbone", "head"}}
