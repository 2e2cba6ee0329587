from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from disa.calibration.quantization.graph_session import GraphSession
from disa.calibration.quantization.plan_graph import WEIGHTS, PlanGraph
from disa.calibration.quantization.qdq import Format
from disa.engines.plan.plan import Plan

Plans = Callable[..., Path]


def test_a_graph_is_quantised_again_in_another_format(golden_plan: Plans, tmp_path: Path) -> None:
    with Plan.open(golden_plan("mar")) as plan:
        graph = PlanGraph(plan, plan.graph("head"), tmp_path)
        scales = {matmul.activation: 0.05 for matmul in graph.matmuls}
        for form in (*Format, Format.INT8):
            graph.quantize_weights(form)
            model = graph.quantized(graph.matmuls, scales)
            GraphSession(graph.info, model.SerializeToString(), tmp_path, form.value, threads=1)
            types = {t.data_type for t in model.graph.initializer if t.name.endswith("quantized")}
            assert types == {form.onnx_type}


def test_weights_are_views_of_the_plan_and_only_those_in_use_are_written(
    golden_plan: Plans, tmp_path: Path
) -> None:
    with Plan.open(golden_plan("mar")) as plan:
        graph = PlanGraph(plan, plan.graph("head"), tmp_path)
        matmul = graph.matmuls[0]
        weight = graph.weight(matmul.weight)
        assert isinstance(weight.base, np.ndarray)
        assert (tmp_path / WEIGHTS).stat().st_size == plan.size
        graph.quantize_weights(Format.INT8)
        written = graph.write(graph.quantized([matmul], {matmul.activation: 0.05}))
    (data,) = written.data
    full = sum(plan.manifest.members[name].size for name in graph.info.data)
    assert full - 3 * weight.size - 1024 < data.stat().st_size < full - 3 * weight.size + 1024
    (tmp_path / WEIGHTS).unlink()
    session = GraphSession(graph.info, written.onnx.read_bytes(), tmp_path, "int8", threads=1)
    assert [spec.name for spec in session.outputs] == ["next_x"]


def test_other_tensors_become_outputs(golden_plan: Plans, tmp_path: Path) -> None:
    with Plan.open(golden_plan("mar")) as plan:
        graph = PlanGraph(plan, plan.graph("timestep"), tmp_path)
        watched = [matmul.activation for matmul in graph.matmuls]
        model = graph.with_outputs([*watched, "timestep", "embedding"])
        session = GraphSession(graph.info, model, tmp_path, threads=1)
        inputs = {"timestep": np.linspace(0, 999, 4, dtype=np.float32)}
        found = session.fetch(inputs, watched)
    assert set(found) == {"embedding", *watched}
    assert found[watched[0]].shape == (4, 256)
    with pytest.raises(KeyError):
        graph.weight("nothing of that name")
