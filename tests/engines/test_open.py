import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from disa.engines import open as opening
from disa.engines.onnxruntime import OnnxRuntimeSession
from disa.engines.open import ENGINES, choose_engine, open_session
from disa.engines.plan import Plan, PlanWriter
from disa.errors import DisaError, MissingDependency

from .tiny_graphs import HEAD_ENGINE


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine one that has some providers, fast bf16, and a TensorRT backend."""

    def build(*runs: str, fast: bool = False, backend: str | None = None) -> None:
        tensorrt = ModuleType("tensorrt")
        tensorrt.usable_backend = lambda plan: backend  # type: ignore[attr-defined]
        tensorrt.open_engine = lambda plan, graph, name: (graph, name)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "disa.engines.tensorrt.open", tensorrt)
        monkeypatch.setattr(opening, "provider_runs", lambda engine: engine in runs)
        monkeypatch.setattr(opening, "fast_bfloat16", lambda: fast)

    return build


@pytest.fixture
def with_engine(plan_path: Path) -> Path:
    """A plan with an engine of TensorRT."""
    with Plan.open(plan_path) as plan, PlanWriter.extend(plan) as writer:
        writer.add_engine(HEAD_ENGINE, b"engine")
    return plan_path


def test_auto_takes_the_fastest_that_runs(machine: Any, with_engine: Path) -> None:
    with Plan.open(with_engine) as plan:
        for runs, fast, backend, auto, onnxruntime in [
            ((), True, None, "cpu", "cpu"),
            (("cuda", "openvino"), True, None, "cuda", "cuda"),
            (("cuda", "openvino"), True, "tensorrt-rtx", "tensorrt-rtx", "cuda"),
            (("openvino",), True, None, "openvino", "openvino"),
            (("openvino",), False, None, "cpu", "cpu"),
        ]:
            machine(*runs, fast=fast, backend=backend)
            assert choose_engine(plan) == auto
            assert choose_engine(plan, "onnxruntime") == onnxruntime


def test_openvino_is_not_chosen_for_fp32(machine: Any, plan_path: Path) -> None:
    machine("openvino", fast=True)
    with Plan.open(plan_path) as plan:
        assert choose_engine(plan, "auto", "fp32") == "cpu"
        assert choose_engine(plan, "openvino", "fp32") == "openvino"


def test_a_plan_without_engines_does_not_ask_tensorrt(machine: Any, plan_path: Path) -> None:
    machine(backend="tensorrt")
    with Plan.open(plan_path) as plan:
        assert choose_engine(plan) == "cpu"


def test_what_is_chosen_is_opened(machine: Any, plan_path: Path) -> None:
    machine()
    with Plan.open(plan_path) as plan:
        for engine in ("auto", "onnxruntime", "cpu"):
            assert isinstance(open_session(plan, "head", engine), OnnxRuntimeSession)
        assert open_session(plan, "head", "tensorrt") == ("head", "tensorrt")
        assert open_session(plan, "head", "tensorrt-rtx") == ("head", "tensorrt-rtx")


def test_engines_that_are_not(plan_path: Path) -> None:
    with Plan.open(plan_path) as plan:
        with pytest.raises(DisaError, match=f"no engine npu: choose one of {', '.join(ENGINES)}"):
            open_session(plan, "head", "npu")
        with pytest.raises(DisaError, match="no graph named tail"):
            open_session(plan, "tail", "cpu")


def test_an_engine_that_was_named_never_becomes_another(
    plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with Plan.open(plan_path) as plan, pytest.raises(MissingDependency, match="onnxruntime-gpu"):
        open_session(plan, "head", "cuda")


def test_plans_run_without_torch_and_onnx(plan_path: Path) -> None:
    code = """
        import sys

        sys.modules["torch"] = sys.modules["onnx"] = None

        import numpy as np
        from disa.engines.inspect import main
        from disa.engines.open import open_session
        from disa.engines.plan import Plan

        with Plan.open(sys.argv[1]) as plan:
            inputs = {"x": np.ones((2, 4), np.float32), "order": np.array([1, 0])}
            print(open_session(plan, "shuffle", "cpu").run(inputs)["next_x"].sum())
        main([sys.argv[1], "--check"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), plan_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "8.0", done.stderr
    assert done.returncode == 0
