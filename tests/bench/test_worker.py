import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from disa.bench import worker as worker_module
from disa.bench.variant import Variant
from disa.bench.worker import Worker, serve
from disa.engines.plan.plan import Plan, PlanWriter
from disa.errors import DisaError
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.sampling.schedule import FittedSchedule, schedule_content


def test_a_worker_ends_with_its_parent_process(pixel_plan: Path) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from disa.bench.worker import Worker\n"
        "if __name__ == '__main__':\n"
        "    worker = Worker(Path(sys.argv[1]), 'cpu', 1)\n"
        "    print(worker._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, pixel_plan], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_a_batch_has_its_cost(pixel_plan: Path) -> None:
    two = Variant("cpu", 2, {"num_iterations": 3, "steps": "3:2"})
    with Worker(pixel_plan, "cpu", 1) as worker:
        assert "CPU" in worker.loaded.engine
        assert worker.loaded.precision == "fp32"
        assert worker.first_image_seconds is None
        cost = worker.generate(two, seed=0)
        assert worker.first_image_seconds is not None
        assert worker.describe(two)["iterations"] == 3
    assert cost.head_calls == 7
    assert cost.head_rows > cost.head_calls
    assert 0 < cost.seconds["backbone"] < cost.seconds["total"]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ("OpenVINO 1.0 CPU bf16", ("openvino", "bf16")),
        ("OpenVINO 1.0 CPU fp32", ("openvino", "fp32")),
        ("OpenVINO 1.0 CPU int8, the rest in bf16", ("openvino", None)),
        ("ONNX Runtime 1.0 CPUExecutionProvider fp32", ("cpu", None)),
    ],
)
def test_the_rate_is_that_of_the_engine_and_precision_that_run(
    runs: str, expected: tuple[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of the matmul is in fp32, whatever the measured one is in."""
    measured = []

    def matrix_rate(engine: str, threads: int | None, precision: str | None) -> float:
        measured.append((engine, precision))
        return 1.0

    monkeypatch.setattr(worker_module, "matrix_rate", matrix_rate)
    monkeypatch.setattr(worker_module, "choose_engine", lambda of, engine: expected[0])
    precision = runs.partition(",")[0].split()[-1]
    worker_module._rate(SimpleNamespace(plan=None, engine=runs), "auto", 1, precision)  # type: ignore[arg-type]
    assert measured == [expected]


@pytest.mark.parametrize("options", [{"tolerance": 0.05}, {"refresh": "2:1"}])
def test_the_floor_of_approximations_is_not_known(
    options: dict[str, Any], cached_backbone_pixels: Path
) -> None:
    """They leave out work that the formula counts."""
    exact: dict[str, Any] = {"num_iterations": 3, "steps": "9:9"}
    with Worker(cached_backbone_pixels, "cpu", 1) as worker:
        assert worker.describe(Variant("cpu", 1, exact))["work"] is not None
        assert worker.describe(Variant("cpu", 1, exact | options))["work"] is None


def test_the_floor_of_a_quantised_plan_is_not_known(pixel_plan: Path, tmp_path: Path) -> None:
    """The rate is that of a matmul in fp32 or bf16."""
    path = tmp_path / "int8.plan"
    with Plan.open(pixel_plan) as plan, PlanWriter.extend(plan, path) as writer:
        writer.content |= {"precision": "int8", "quantization": {"graphs": {}}}
    with Worker(path, "cpu", 1) as worker:
        assert worker.describe(Variant("cpu", 1, {"num_iterations": 3}))["work"] is None


def test_steps_replace_the_schedule_of_a_plan(pixel_plan: Path, tmp_path: Path) -> None:
    path, fitted = tmp_path / "fitted.plan", schedule_content(FittedSchedule((4, 2)))
    with Plan.open(pixel_plan) as plan, PlanWriter.extend(plan, path) as writer:
        writer.content["defaults"] = {**plan.manifest.defaults, "schedule": fitted}
    with Worker(path, "cpu", 1) as worker:
        shown = [
            worker.describe(Variant("cpu", 1, options))["options"]
            for options in ({}, {"steps": "5:3"}, {"strategy": "constant"})
        ]
    assert [options.get("schedule") for options in shown] == [fitted, None, None]


def test_the_end_of_the_process_is_reported(pixel_plan: Path) -> None:
    with Worker(pixel_plan, "cpu", 1) as worker:
        worker._process.kill()
        with pytest.raises(DisaError, match="ended with code -9: if memory ran out"):
            worker.describe(Variant("cpu", 1, {}))


def test_the_end_of_an_idle_process_is_reported(pixel_plan: Path) -> None:
    """The error was a broken pipe, without a word of the process or of memory."""
    with Worker(pixel_plan, "cpu", 1) as worker:
        worker._process.kill()
        worker._process.join()
        with pytest.raises(DisaError, match="ended with code -9: if memory ran out"):
            worker.rate()


def test_images_that_are_not_finite_are_not_measured(
    pixel_plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = PhiloxNoise.gaussian

    def overflowing(self: PhiloxNoise, *given: Any) -> Any:
        return np.full_like(noise(self, *given), np.inf)

    monkeypatch.setattr(PhiloxNoise, "gaussian", overflowing)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    quick = Variant("cpu", 1, {"num_iterations": 2, "steps": "2"})
    connection, end_of_worker = multiprocessing.Pipe()
    connection.send(("generate", quick, 0))
    connection.send(("describe", Variant("cpu", 1, {"steps": "this ends the worker"})))
    serve(end_of_worker, pixel_plan, "cpu", 1)
    assert connection.recv()[0] == "ok"
    kind, message = connection.recv()
    assert kind == "error"
    assert "values that are not finite" in message
