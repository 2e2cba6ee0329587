from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest

from disa.errors import DisaError
from disa.runtime.families.flow.flowar import euler_subsample
from disa.runtime.families.flow.xar import euler_maruyama_subsample
from disa.runtime.families.masked.options import MaskedOptions
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampling import denoise
from disa.runtime.sampling.adaptive import (
    Subsample,
    level_tables,
    levels,
    prediction_change,
    steps_kept,
)
from disa.runtime.sampling.flow import FlowTable, euler_maruyama_table, euler_table
from disa.runtime.sampling.sampler import (
    SamplerName,
    StepTable,
    cosine_alphas_cumprod,
    ddim_table,
    ddpm_table,
)

from ...conftest import ExportGolden

OPTIONS = {"num_iterations": 4, "steps": "20:12"}


def test_without_tolerance_every_step_is_taken(pixel_pipeline: Pipeline) -> None:
    linear = pixel_pipeline([1, 2, 3], **OPTIONS)  # type: ignore[arg-type]
    none = pixel_pipeline([1, 2, 3], **OPTIONS, strategy="adaptive", tolerance=0.0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(none.latents, linear.latents)
    assert none.stats.head_rows == linear.stats.head_rows


def test_a_tiny_tolerance_comes_to_the_same_result(pixel_pipeline: Pipeline) -> None:
    linear = pixel_pipeline([1, 2, 3], **OPTIONS)  # type: ignore[arg-type]
    tiny = pixel_pipeline([1, 2, 3], **OPTIONS, tolerance=1e-9)  # type: ignore[arg-type]
    np.testing.assert_allclose(tiny.latents, linear.latents, rtol=1e-4, atol=1e-4)
    assert tiny.stats.head_calls == linear.stats.head_calls


def test_a_tolerance_leaves_out_steps(pixel_pipeline: Pipeline) -> None:
    rows = [
        pixel_pipeline([1, 2, 3], **OPTIONS, tolerance=tolerance).stats.head_rows  # type: ignore[arg-type]
        for tolerance in (1e-9, 0.3, 10.0)
    ]
    assert rows == sorted(rows, reverse=True)
    assert rows[2] < 0.75 * rows[0]


def test_an_image_does_not_depend_on_its_batch(pixel_pipeline: Pipeline) -> None:
    together = pixel_pipeline([1, 2, 3], **OPTIONS, tolerance=0.3)  # type: ignore[arg-type]
    alone = pixel_pipeline([3], **OPTIONS, tolerance=0.3, first_image=2)  # type: ignore[arg-type]
    np.testing.assert_allclose(alone.latents[0], together.latents[2], rtol=1e-3, atol=1e-3)


def test_dpm_solver_is_refused(pixel_pipeline: Pipeline) -> None:
    with pytest.raises(DisaError, match="ddpm and ddim"):
        pixel_pipeline(1, strategy="adaptive", sampler="dpm-solver")


def test_steps_kept() -> None:
    change = np.array([0.0, 0.001, 0.02, 5.0, 0.011], np.float32)
    assert steps_kept(change, 40, 0.02).tolist() == [5, 5, 40, 40, 30]
    assert steps_kept(change, 3, 0.02).tolist() == [2, 2, 3, 3, 2]
    assert steps_kept(np.array([np.nan, np.inf], np.float32), 40, 0.02).tolist() == [40, 40]


@pytest.mark.parametrize("sampler", [SamplerName.DDPM, SamplerName.DDIM])
def test_all_steps_left_are_those_of_the_table(sampler: SamplerName) -> None:
    whole = {SamplerName.DDPM: ddpm_table, SamplerName.DDIM: ddim_table}[sampler](20, 0.9)
    left = whole.part(slice(4, None))
    tables = level_tables(left, MaskedOptions(sampler=sampler, temperature=0.9).subsample)
    assert list(tables) == levels(len(left))
    check_levels(tables, left)


@pytest.mark.parametrize("make", [euler_table, euler_maruyama_table])
def test_all_steps_left_are_those_of_a_flow_table(make: Callable[[int], FlowTable]) -> None:
    left = make(25).part(slice(5, None))
    tables = level_tables(left, subsample_of(make))
    assert [len(table) for table in tables.values()] == levels(len(left))
    check_levels(tables, left)
    for part in tables.values():
        # Euler steps lead from their first time to 0.
        assert make is euler_maruyama_table or part.coefficients[:, 1].sum() == pytest.approx(
            -left.times[0]
        )


def subsample_of(make: Callable[[int], FlowTable], interval: float = 1.0) -> Subsample:
    if make is euler_table:
        return partial(euler_subsample, interval)
    return euler_maruyama_subsample


def check_levels(tables: Mapping[int, StepTable], left: StepTable) -> None:
    """The whole table is there, and each part of it goes all the way."""
    for field in fields(left):
        found = getattr(tables[len(left)], field.name)
        np.testing.assert_array_equal(found, getattr(left, field.name))
    for table in tables.values():
        assert table.places[0] == left.places[0]
        assert table.places[-1] == left.places[-1]


def test_the_first_guided_step_is_kept() -> None:
    left = euler_table(24).part(slice(5, None))
    kept = np.array([0, 9, len(left) - 1])
    thinned = subsample_of(euler_table, 0.5)(left, kept)
    assert isinstance(thinned, FlowTable)
    first = np.flatnonzero(left.times <= 0.5)[0]
    assert first not in kept
    np.testing.assert_array_equal(thinned.times, left.times[np.sort([*kept, first])])


def test_the_prediction_is_recovered() -> None:
    rng = np.random.default_rng(0)
    table = ddpm_table(50, 1.0)
    token, epsilon, noise = rng.standard_normal((3, 6, 16))
    for index in range(10):
        alpha_bar = cosine_alphas_cumprod()[int(table.timesteps[index])]
        x = np.sqrt(alpha_bar) * token + np.sqrt(1 - alpha_bar) * epsilon
        c = table.coefficients[index].astype(float)
        deviation = np.exp(0.5 * (0.7 * c[3] + 0.3 * c[2]))
        after = c[0] * x + c[1] * epsilon + c[4] * deviation * noise
        found = table.predicted_token(index, x, after, noise)
        assert np.abs(found - token).max() < 0.1


@pytest.mark.parametrize("make", [euler_table, euler_maruyama_table])
def test_the_prediction_of_a_flow_is_recovered(make: Callable[[int], FlowTable]) -> None:
    rng = np.random.default_rng(0)
    table = make(25)
    token, epsilon, noise = rng.standard_normal((3, 6, 4, 16))
    for index, (time, c) in enumerate(zip(table.times, table.coefficients, strict=True)):
        x = (1 - time) * token + time * epsilon
        added = 0.0 if len(c) == 2 else c[2] * noise
        after = c[0] * x + c[1] * (epsilon - token) + added
        found = table.predicted_token(index, x, after, None if len(c) == 2 else noise)
        np.testing.assert_allclose(found, token, atol=1e-4)


def test_the_change_is_that_of_a_mean_remaining_step() -> None:
    """Two items of two tokens whose predictions turn at a known rate."""
    table = euler_table(24)
    first, rate = 5, np.array([0.1, 0.4])
    token = np.ones((2, 2, 3), np.float32)
    states = [np.zeros_like(token)]
    for index in (first - 2, first - 1):
        drift = rate[:, None] * table.times[index] * token
        x, (of_x, of_v) = states[-1], table.coefficients[index]
        velocity = (x - drift) / table.times[index]
        states.append((of_x * x + of_v * velocity).astype(np.float32))
    found = prediction_change(table, first, states, [None, None])
    mean_width = (table.times[first] - table.times[-1]) / (len(table) - first - 1)
    np.testing.assert_allclose(found, rate * mean_width, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("flowar_s", 0.75), ("flowar_l", 1.5), ("xar", 1.25)]
)
def test_images_of_flow_families_leave_alone(
    name: str, tolerance: float, golden_plan: ExportGolden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images keep different numbers of steps, and each comes out as it does alone."""
    kept = []
    monkeypatch.setattr(
        denoise, "steps_kept", lambda *given: kept.append(steps_kept(*given)) or kept[-1]
    )
    pipe = Pipeline.from_plan(golden_plan(name), "cpu")
    options: dict[str, Any] = {"steps": "12:8", "guidance_scale": 2.0}
    if name != "xar":
        options["guidance_interval"] = 0.6
    whole = pipe([1, 2, 3], **options)
    none = pipe([1, 2, 3], **options, strategy="adaptive", tolerance=0.0)
    np.testing.assert_array_equal(none.latents, whole.latents)
    tiny = pipe([1, 2, 3], **options, tolerance=1e-9)
    np.testing.assert_allclose(tiny.latents, whole.latents, rtol=1e-4, atol=1e-4)
    assert tiny.stats.head_rows == whole.stats.head_rows
    loose = {**options, "tolerance": tolerance}
    kept.clear()
    together = pipe([1, 2, 3], **loose)
    assert together.stats.head_rows < whole.stats.head_rows
    assert any(len(set(counts.tolist())) > 1 for counts in kept)
    for index in range(3):
        alone = pipe([index + 1], **loose, first_image=index)
        error = np.abs(alone.latents[0] - together.latents[index]).max()
        assert error < 1e-3 * np.abs(together.latents[index]).max()


def test_flow_options_know_adaptive(golden_plan: ExportGolden) -> None:
    pipe = Pipeline.from_plan(golden_plan("flowar_s"), "cpu")
    assert pipe.options(strategy="adaptive").tolerance == 0.01
    assert pipe.options().tolerance == 0
    with pytest.raises(DisaError, match="0 to 10"):
        pipe.options(tolerance=11)
