"""Options of masked generation: guidance, tables, and what a schedule brings along."""

from typing import Any

import numpy as np
import pytest

from disa.errors import InvalidRequest
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.families.masked.partition import prediction_counts
from disa.runtime.sampling.sampler import step_table
from disa.runtime.sampling.schedule import FittedSchedule


def test_guidance_grows_with_what_is_known() -> None:
    linear = MaskedOptions(guidance_scale=3)
    assert [linear.guidance(known, 8) for known in (0, 2, 8)] == [1, 1.5, 3]
    constant = MaskedOptions(guidance_scale=3, guidance_schedule="constant")  # type: ignore[arg-type]
    assert [constant.guidance(known, 8) for known in (0, 8)] == [3, 3]


def test_only_a_scale_of_1_is_no_guidance() -> None:
    scales = (0.5, 1, 1.0, 1.5)
    assert [MaskedOptions(guidance_scale=s).guided for s in scales] == [True, False, False, True]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver", "dpm-solver++"])
def test_tables_of_the_sampler(sampler: Any) -> None:
    options = MaskedOptions(sampler=sampler, steps="9:3", num_iterations=4, temperature=0.8)
    assert [len(options.table(iteration)) for iteration in range(4)] == [9, 7, 5, 3]
    assert options.table(1) is step_table(sampler, 7, 0.8, False)
    fixed = MaskedOptions(sampler=sampler, steps="9:3", strategy="fixed")  # type: ignore[arg-type]
    assert fixed.table(0) is fixed.table(5) is step_table(sampler, 9, 1.0, True)
    listed = MaskedOptions(sampler=sampler, schedule=FittedSchedule((9, 5)))
    assert listed.table_of(9) is step_table(sampler, 9, 1.0, False)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_fewer_steps_of_a_table(sampler: Any) -> None:
    options = MaskedOptions(sampler=sampler, temperature=0.8)
    table = options.table_of(9)
    whole = options.subsample(table, np.arange(9))
    np.testing.assert_array_equal(whole.timesteps, table.timesteps)
    np.testing.assert_allclose(whole.coefficients, table.coefficients, rtol=1e-6)
    part = options.subsample(table, np.array([0, 3, 8]))
    np.testing.assert_array_equal(part.timesteps, table.timesteps[[0, 3, 8]])


def test_a_partition_is_that_of_the_schedule() -> None:
    assert MaskedOptions(num_iterations=5).partition(64) == [4, 9, 14, 18, 19]
    checkered = MaskedOptions(num_iterations=5, order="checkerboard")  # type: ignore[arg-type]
    assert (
        checkered.partition(64) == prediction_counts(64, 5, checkered.order) != [4, 9, 14, 18, 19]
    )
    listed = MaskedOptions(num_iterations=2, schedule=FittedSchedule((9, 5), (24, 40)))
    assert listed.partition(64) == [24, 40]
    with pytest.raises(InvalidRequest, match="images of 64 tokens, and these have 65"):
        listed.partition(65)
    steps = MaskedOptions(num_iterations=2, schedule=FittedSchedule((9, 5)))
    assert steps.partition(65) == prediction_counts(65, 2)


def test_iterations_of_a_schedule() -> None:
    """One that lists tokens or full passes has its own number of AR iterations."""
    for listed in (FittedSchedule((9, 5), (24, 40)), FittedSchedule((9, 5), refresh=(0,))):
        with pytest.raises(InvalidRequest, match="for 2 AR iterations, not 3: leave out num_iter"):
            MaskedOptions(num_iterations=3, schedule=listed)
        assert MaskedOptions(num_iterations=2, schedule=listed).num_iterations == 2
    assert MaskedOptions(num_iterations=3, schedule=FittedSchedule((9, 5))).num_iterations == 3


def test_full_passes() -> None:
    assert MaskedOptions().refresh_plan is None
    every = MaskedOptions(refresh="3:2").refresh_plan
    assert every
    assert [every.is_full(i) for i in range(6)] == [True, True, True, False, False, True]
    with pytest.raises(InvalidRequest, match="full passes are EVERY:FIRST"):
        MaskedOptions(refresh="often")
    for listed, late in (("0,1,99", 99), ("0,64,70", 64)):
        with pytest.raises(InvalidRequest, match=f"full pass {late} does not exist in 64 AR"):
            MaskedOptions(refresh=listed)
    for fits in ("0,63", "100:5", "5:100"):
        assert MaskedOptions(refresh=fits).refresh == fits
    schedule = FittedSchedule((9, 5, 3), refresh=(0, 2))
    for given in (None, "0,2"):
        options = MaskedOptions(num_iterations=3, schedule=schedule, refresh=given)
        assert options.refresh == "0,2"
    with pytest.raises(InvalidRequest, match="leave out refresh"):
        MaskedOptions(num_iterations=3, schedule=schedule, refresh="0,1")


def test_steps_are_left_out_by_samplers_with_whole_timesteps() -> None:
    for sampler in ("ddpm", "ddim", "dpm-solver"):
        options: dict[str, Any] = {"sampler": sampler, "tolerance": 0.1}
        if sampler == "dpm-solver":
            with pytest.raises(InvalidRequest, match="ddpm and ddim, not with dpm-solver"):
                MaskedOptions(**options)
            options["tolerance"] = 0
        assert MaskedOptions(**options).tolerance == options["tolerance"]


FITTED = FittedSchedule((9, 5), (24, 40), (0,))


@pytest.mark.parametrize(
    ("plan", "request_", "expected"),
    [
        ({}, {"schedule": FITTED}, (2, FITTED, "0")),
        ({"num_iterations": 5, "refresh": "9:5"}, {"schedule": FITTED}, (2, FITTED, "0")),
        ({"schedule": FITTED}, {}, (2, FITTED, "0")),
        ({"schedule": FITTED}, {"num_iterations": 2}, (2, FITTED, "0")),
        ({"schedule": FITTED}, {"num_iterations": 2, "refresh": "9:5"},
         (2, FittedSchedule((9, 5), (24, 40)), "9:5")),
        ({"schedule": FITTED}, {"num_iterations": 3}, (3, FittedSchedule((9, 5)), None)),
        ({"schedule": FITTED, "num_iterations": 7}, {"refresh": "0,1"},
         (2, FittedSchedule((9, 5), (24, 40)), "0,1")),
        ({"schedule": FittedSchedule((9, 5)), "refresh": "4:2"}, {"num_iterations": 3},
         (3, FittedSchedule((9, 5)), "4:2")),
        ({}, {"schedule": FittedSchedule((9, 5), refresh=(0,))},
         (2, FittedSchedule((9, 5), refresh=(0,)), "0")),
    ],
)  # fmt: skip
def test_what_a_schedule_brings_along(
    plan: dict[str, Any], request_: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    options = MaskedOptions.of("mar", {"count": 64}, plan, request_)
    assert (options.num_iterations, options.schedule, options.refresh) == expected
