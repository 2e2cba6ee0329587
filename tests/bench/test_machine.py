from pathlib import Path

import numpy as np
import pytest

from disa.bench.machine import matrix_rate, peak_memory, read_bandwidth, write_matmul_plan
from disa.engines.plan.plan import Plan


def test_the_machine_is_measured(tmp_path: Path) -> None:
    assert 1e7 < matrix_rate("cpu", 1, size=128) < 1e15
    assert 1e6 < read_bandwidth(1, size=1 << 20) < 1e13
    before = peak_memory()
    assert before is not None
    held = np.ones(64 << 20, np.uint8)
    after = peak_memory()
    assert after is not None
    assert after >= before
    del held


def test_the_matmul_graph_is_valid_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    write_matmul_plan(tmp_path / "matmul.plan")
    with Plan.open(tmp_path / "matmul.plan") as plan:
        plan.check()
        model = onnx.load_from_string(bytes(plan.read(plan.graph("matmul").onnx)))
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
