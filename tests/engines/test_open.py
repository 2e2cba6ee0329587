import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from disa.engines import open as opening
from disa.engines.open import ENGINES, choose_engine, open_session
from disa.engines.openvino.session import OpenVINOSession
from disa.engines.ort.session import OnnxRuntimeSession
from disa.engines.plan.plan import Plan, PlanWriter
from disa.errors import DisaError, MissingDependency

from .tiny_graphs import HEAD_ENGINE, write_int8_plan


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes this machine one that has some providers, fast bf16, and a TensorRT backend."""

    def build(*runs: str, backend: str | None = None) -> None:
        tensorrt = ModuleType("tensorrt")
        tensorrt.usable_backend = lambda plan: backend  # type: ignore[attr-defined]
        tensorrt.open_engine = lambda plan, graph, name: (graph, name)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "disa.engines.tensorrt.load", tensorrt)
        monkeypatch.setattr(opening, "provider_runs", lambda engine: engine in runs)
        monkeypatch.setattr(opening, "installed", lambda package: package in ("onnxruntime", *runs))

    return build


@pytest.fixture
def with_engine(plan_path: Path) -> Path:
    """A plan with an engine of TensorRT."""
    with Plan.open(plan_path) as plan, PlanWriter.extend(plan) as writer:
        writer.add_engine(HEAD_ENGINE, b"engine")
    return plan_path


def test_auto_takes_the_fastest_that_runs(machine: Any, with_engine: Path) -> None:
    with Plan.open(with_engine) as plan:
        for runs, backend, auto, onnxruntime in [
            ((), None, "cpu", "cpu"),
            (("cuda", "openvino"), None, "cuda", "cuda"),
            (("cuda", "openvino"), "tensorrt-rtx", "tensorrt-rtx", "cuda"),
            (("openvino",), None, "openvino", "cpu"),
        ]:
            machine(*runs, backend=backend)
            assert choose_engine(plan) == auto
            assert choose_engine(plan, "onnxruntime") == onnxruntime


def test_openvino_is_not_chosen_for_int8_where_it_is_inexact(
    machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("openvino")
    with Plan.open(write_int8_plan(tmp_path / "int8.plan")) as plan:
        for exact, engine in ((True, "openvino"), (False, "cpu")):
            monkeypatch.setattr(opening, "exact_int8", lambda exact=exact: exact)
            assert choose_engine(plan) == engine


def test_openvino_is_not_chosen_for_fp32(machine: Any, plan_path: Path) -> None:
    machine("openvino")
    with Plan.open(plan_path) as plan:
        assert choose_engine(plan, "auto", "fp32") == "cpu"
        assert choose_engine(plan, "openvino", "fp32") == "openvino"


@pytest.mark.parametrize(
    ("engine", "asked", "computed"),
    [("auto", None, "fp32"), ("openvino", None, None), ("openvino", "fp32", "fp32")],
)
def test_auto_does_not_approximate(
    engine: str,
    asked: str | None,
    computed: str | None,
    machine: Any,
    plan_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(
        "disa.engines.openvino.session.OpenVINOSession",
        lambda plan, graph, threads, precision: opened.append(precision),
    )
    machine("openvino")
    with Plan.open(plan_path) as plan:
        open_session(plan, "head", engine, precision=asked)
    assert opened == [computed]


def test_openvino_alone_is_enough(
    machine: Any, plan_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine()
    monkeypatch.setattr(opening, "installed", lambda package: package == "openvino")
    with Plan.open(plan_path) as plan:
        assert choose_engine(plan, precision="fp32") == "openvino"


def test_a_plan_without_engines_does_not_ask_tensorrt(machine: Any, plan_path: Path) -> None:
    machine(backend="tensorrt")
    with Plan.open(plan_path) as plan:
        assert choose_engine(plan) == "cpu"


def test_what_is_chosen_is_opened(machine: Any, plan_path: Path) -> None:
    machine()
    with Plan.open(plan_path) as plan:
        for engine in ("auto", "onnxruntime", "cpu"):
            assert isinstance(open_session(plan, "head", engine), OnnxRuntimeSession)
        assert isinstance(open_session(plan, "head", "openvino"), OpenVINOSession)
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
        from disa.commands.inspect import main
        from disa.engines.open import open_session
        from disa.engines.plan.plan import Plan

        with Plan.open(sys.argv[1]) as plan:
            inputs = {"x": np.ones((2, 4), np.float32), "order": np.array([1, 0])}
            print(open_session(plan, "shuffle", "cpu").run(inputs)["next_x"].sum())
        main([sys.argv[1], "--check"])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), plan_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "8.0", done.stderr
    assert done.returncode == 0
