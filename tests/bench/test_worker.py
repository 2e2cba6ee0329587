import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disa.bench.variant import Variant
from disa.bench.worker import Worker, serve
from disa.errors import DisaError
from disa.runtime.sampling.noise import PhiloxNoise


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


def test_the_end_of_the_process_is_reported(pixel_plan: Path) -> None:
    with Worker(pixel_plan, "cpu", 1) as worker:
        worker._process.kill()
        with pytest.raises(DisaError, match="ended with code -9: if memory ran out"):
            worker.describe(Variant("cpu", 1, {}))


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
