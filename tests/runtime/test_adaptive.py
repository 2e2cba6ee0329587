from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from disa.errors import DisaError
from disa.runtime.adaptive import joint_table, predicted_token, steps_kept
from disa.runtime.pipeline import Pipeline
from disa.runtime.sampler import (
    SamplerName,
    cosine_alphas_cumprod,
    ddim_table,
    ddpm_table,
    respaced_table,
)

OPTIONS = {"num_iterations": 4, "steps": "20:12"}


def test_without_tolerance_every_step_is_taken(pixel_pipeline: Pipeline) -> None:
    linear = pixel_pipeline([1, 2, 3], **OPTIONS)  # type: ignore[arg-type]
    adaptive = pixel_pipeline([1, 2, 3], **OPTIONS, strategy="adaptive", tolerance=0.0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(adaptive.latents, linear.latents)
    assert adaptive.stats.head_rows == linear.stats.head_rows


def test_a_tiny_tolerance_comes_to_the_same_result(pixel_pipeline: Pipeline) -> None:
    linear = pixel_pipeline([1, 2, 3], **OPTIONS)  # type: ignore[arg-type]
    adaptive = pixel_pipeline([1, 2, 3], **OPTIONS, tolerance=1e-9)  # type: ignore[arg-type]
    np.testing.assert_allclose(adaptive.latents, linear.latents, rtol=1e-4, atol=1e-4)
    assert adaptive.stats.head_calls == linear.stats.head_calls


def test_a_tolerance_leaves_out_steps(pixel_pipeline: Pipeline) -> None:
    rows = [
        pixel_pipeline([1, 2, 3], **OPTIONS, tolerance=tolerance).stats.head_rows  # type: ignore[arg-type]
        for tolerance in (1e-9, 0.3, 10.0)
    ]
    assert rows == sorted(rows, reverse=True)
    assert rows[2] < 0.7 * rows[0]


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


@pytest.mark.parametrize("sampler", [SamplerName.DDPM, SamplerName.DDIM])
def test_all_steps_left_are_those_of_the_table(sampler: SamplerName) -> None:
    whole = {SamplerName.DDPM: ddpm_table, SamplerName.DDIM: ddim_table}[sampler](20, 0.9)
    respaced = partial(respaced_table, sampler, temperature=0.9)
    joint, starts = joint_table(whole.timesteps[4:], np.array([2, 7, len(whole) - 4]), respaced)
    part = slice(starts[len(whole) - 4], None)
    np.testing.assert_array_equal(joint.timesteps[part], whole.timesteps[4:])
    np.testing.assert_array_equal(joint.coefficients[part], whole.coefficients[4:])
    assert starts == {2: 0, 7: 2, len(whole) - 4: 9}
    for start, count in ((0, 2), (2, 7)):
        assert joint.timesteps[start] == whole.timesteps[4]
        assert joint.timesteps[start + count - 1] == 0


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
        found = predicted_token(table, index, x, after, noise)
        assert np.abs(found - token).max() < 0.1


def test_flow_families_are_refused(golden_plan: Callable[..., Path]) -> None:
    pipe = Pipeline.from_plan(golden_plan("flowar_s"), "cpu")
    for options in ({"strategy": "adaptive"}, {"tolerance": 0.1}):
        with pytest.raises(DisaError, match="MAR and Harmon"):
            pipe.settings(**options)
