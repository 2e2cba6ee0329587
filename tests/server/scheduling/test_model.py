"""The warm-up before the first request."""

from collections.abc import Sequence
from typing import Any

import pytest

from disa.errors import InvalidRequest, OutOfMemory
from disa.runtime.generation import Output, Sample
from disa.server.scheduling.model import doubling, load_plan, warm_up

from ..fake_family import SIDE, FakeFamily, fake_model


@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])]
)
def test_batches_double(most: int, sizes: list[int]) -> None:
    assert list(doubling(most)) == sizes


def test_all_batch_sizes_are_run_if_there_is_time() -> None:
    family = FakeFamily()
    warmed = warm_up(fake_model(family), 5, 60.0, clock=lambda: 0.0)
    assert warmed.images == (1, 2, 4, 5)
    assert (warmed.width, warmed.height) == (SIDE, SIDE)
    assert family.steps == [1] * 4 + [2] * 4 + [4] * 4 + [5] * 4


def test_no_batch_is_started_that_would_take_too_long() -> None:
    family, now = FakeFamily(), 0.0

    def clock() -> float:
        return now

    def pass_time() -> None:
        nonlocal now
        now += 1.0

    family.entered = pass_time
    # Four iterations take 4 s; 4 s + 2 * 4 s is in time, 8 s + 2 * 4 s is not.
    assert warm_up(fake_model(family), 8, 12.0, clock=clock).images == (1, 2)


@pytest.mark.parametrize("error", [OutOfMemory("the device is full"), MemoryError()])
def test_a_batch_that_does_not_fit_into_memory_is_the_last(error: Exception) -> None:
    family = FakeFamily()

    def check(samples: Sequence[Sample]) -> None:
        if len(samples) > 2:
            raise error

    family.failing = check
    assert warm_up(fake_model(family), 16, 60.0, clock=lambda: 0.0).images == (1, 2)


def test_a_model_of_which_not_even_one_image_fits_cannot_be_served() -> None:
    family = FakeFamily()

    def check(samples: Sequence[Sample]) -> None:
        raise OutOfMemory("the device is full")

    family.failing = check
    with pytest.raises(OutOfMemory):
        warm_up(fake_model(family), 16, 60.0)


def test_a_plan_without_pixels_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    family = FakeFamily()
    finish = family.finish

    def latents(*arguments: object) -> list[Output]:
        return [Output(None, one.latents, True) for one in finish(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(family, "finish", latents)
    with pytest.raises(InvalidRequest, match="--vae"):
        warm_up(fake_model(family), 1, 0.0)


def test_auto_takes_the_engine_that_changing_batches_cost_least(golden_plan: Any) -> None:
    model = load_plan(golden_plan("mar"), "auto", 1)
    assert model.engine.startswith("ONNX Runtime")
    assert load_plan(golden_plan("mar"), "openvino", 1).engine.startswith("OpenVINO")
