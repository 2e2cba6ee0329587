import pytest
import torch

from benchmarks.gpu_speed import Clock, Eager, Machine, floors, head_weights, schedule
from benchmarks.random_plan import TINY, config_of
from disa.exporter.mar import MAR


def test_head_weights_are_those_of_the_head_step() -> None:
    config = config_of("mar_b")
    with torch.device("meta"):
        head = MAR(config).head
    matrices = sum(p.numel() for p in head.parameters() if p.ndim == 2)
    outside = [head.time_embed, head.cond_embed]
    outside_numbers = sum(p.numel() for m in outside for p in m.parameters() if p.ndim == 2)
    assert head_weights(config) == matrices - outside_numbers


def test_floors_are_bandwidth_at_batch_one_and_rate_at_large_batches() -> None:
    config, machine = config_of("mar_b"), Machine(3e12, 8e14)
    weights = head_weights(config)
    assert floors(config, machine, 1, 64)[1] == pytest.approx(1000 * 2 * weights / 3e12)
    rows = 2 * 64 * 4
    assert floors(config, machine, 64, 64)[1] == pytest.approx(1000 * 2 * weights * rows / 8e14)
    images = [floors(config, machine, batch, 64)[0] for batch in (1, 8, 64)]
    assert images[0] > images[1] > images[2]


def test_the_schedule_is_fifty_to_five() -> None:
    steps = schedule(64)
    assert (len(steps), steps[0], steps[-1]) == (64, 50, 5)
    assert steps == sorted(steps, reverse=True)


def test_eager_draws_every_token() -> None:
    torch.set_num_threads(1)
    clock = Clock("cpu", minutes=1)
    speed = Eager(TINY, clock).speed("tiny", batch=2, iterations=3, compiled=False)
    assert speed.seconds_per_image > 0
    assert speed.head_step_ms > 0
    assert clock.left < 60
