from pathlib import Path

import pytest
import torch

from benchmarks.gpu.speed import Eager, EngineSpeed, Machine, Timer, schedule
from benchmarks.random_plan import TINY
from disa.bench.mar_work import graph_bytes, head_flops, modulation_weights


def test_floors_are_bandwidth_at_batch_one_and_rate_at_large_batches(tmp_path: Path) -> None:
    speed = EngineSpeed("tiny", "fp32", "cpu", tmp_path, Timer("cpu", minutes=1))
    slow_memory, slow_units = Machine(1e6, 1e15), Machine(1e15, 1e6)
    plan = speed.pipe.plan
    # The weights of the modulations need to be read only once an AR iteration.
    modulations = 2 * modulation_weights(plan.manifest.model) / head_flops(plan.manifest.model, 1)
    weights = (1 - modulations) * graph_bytes(plan, "head")
    for batch in (1, 8):
        found = speed.floor(batch, 4, slow_memory)
        assert found["head_step_ms"] == pytest.approx(1000 * weights / 1e6)
    steps = [speed.floor(batch, 4, slow_units)["head_step_ms"] for batch in (1, 8)]
    assert steps[1] == pytest.approx(8 * steps[0])
    images = [speed.floor(batch, 4, slow_memory)["seconds_per_image"] for batch in (1, 8)]
    assert images[0] == pytest.approx(8 * images[1])


def test_the_schedule_is_fifty_to_five() -> None:
    steps = schedule(64)
    assert (len(steps), steps[0], steps[-1]) == (64, 50, 5)
    assert steps == sorted(steps, reverse=True)


def test_eager_samples_every_token() -> None:
    torch.set_num_threads(1)
    timer = Timer("cpu", minutes=1)
    speed = Eager(TINY, timer).speed("tiny", batch=2, iterations=3)
    assert speed.seconds_per_image > 0
    assert speed.head_step_ms > 0
    assert timer.left < 60
