import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.runtime.sampling.sampler import (
    CLIP_DDIM,
    CLIP_DDPM,
    SamplerName,
    cosine_alphas_cumprod,
    spread_timesteps,
    step_table,
    strided_timesteps,
)

RECORDED = json.loads((Path(__file__).parents[2] / "golden/schedules.json").read_text())


def recorded(kind: str) -> list[tuple[int, list[int]]]:
    prefix = f"{kind}_"
    found = RECORDED["timestep_map"].items()
    return [(int(key[len(prefix) :]), value) for key, value in found if key.startswith(prefix)]


def test_every_recorded_timestep() -> None:
    assert len(recorded("disa")) >= 99
    for steps, timesteps in recorded("disa"):
        assert spread_timesteps(steps, CLIP_DDPM) == timesteps
    for steps, timesteps in recorded("default"):
        assert spread_timesteps(steps, None) == timesteps
    for steps, timesteps in recorded("ddim"):
        assert strided_timesteps(steps, CLIP_DDIM) == timesteps


@pytest.mark.parametrize(
    ("sampler", "first"), [(SamplerName.DDPM, [950, 949]), (SamplerName.DDIM, [980, 970])]
)
def test_the_noisiest_timestep_is_that_of_the_official_code(
    sampler: SamplerName, first: list[int]
) -> None:
    steps = {SamplerName.DDPM: 1000, SamplerName.DDIM: 100}[sampler]
    assert step_table(sampler, steps).timesteps[:2].tolist() == first
    whole = step_table(sampler, steps, whole_range=True).timesteps
    assert whole[0] == {SamplerName.DDPM: 999, SamplerName.DDIM: 990}[sampler]


def test_cosine_betas() -> None:
    alpha_bar = cosine_alphas_cumprod()
    betas = 1 - alpha_bar / np.append(1, alpha_bar[:-1])
    assert betas[:5] == pytest.approx(RECORDED["cosine_betas_1000"]["first"], rel=1e-9)
    assert 1 - alpha_bar[949] / alpha_bar[948] > 0


def test_ddpm_coefficients_are_the_recorded_posterior() -> None:
    recorded = {k: np.array(v)[::-1] for k, v in RECORDED["spacing_disa_10"].items() if k != "t"}
    table = step_table(SamplerName.DDPM, 10)
    of_start = recorded["posterior_mean_coef1"]
    expected = np.stack(
        [
            of_start * recorded["sqrt_recip_alphas_cumprod"] + recorded["posterior_mean_coef2"],
            -of_start * recorded["sqrt_recipm1_alphas_cumprod"],
            recorded["posterior_log_variance_clipped"],
            recorded["log_betas"],
            np.append(np.ones(9), 0),
        ],
        axis=1,
    )
    np.testing.assert_allclose(table.coefficients, expected, rtol=1e-6)


@given(st.sampled_from(SamplerName), st.integers(2, 120), st.floats(0, 2))
def test_tables_end_at_the_data(sampler: SamplerName, steps: int, temperature: float) -> None:
    table = step_table(sampler, steps, temperature)
    assert len(table) <= steps
    assert np.all(np.diff(table.timesteps) < 0)
    assert np.isfinite(table.coefficients).all()
    assert table.coefficients[-1, 4] == 0


@given(st.integers(2, 120))
def test_ddim_returns_a_noiseless_token(steps: int) -> None:
    """x = sqrt(alpha_bar) * x0 with epsilon = 0 must come out as x0."""
    table = step_table(SamplerName.DDIM, steps)
    kept = np.prod(table.coefficients[:, 0].astype(np.float64))
    start = cosine_alphas_cumprod()[int(table.timesteps[0])]
    assert kept * np.sqrt(start) == pytest.approx(1, rel=1e-5)


def straight(alphas: np.ndarray, token: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
    """Where a token with that noise is at cumulative alphas, [len(alphas), C]."""
    return np.sqrt(alphas)[:, None] * token + np.sqrt(1 - alphas)[:, None] * epsilon


def dpm_alphas(timesteps: np.ndarray) -> np.ndarray:
    """Cumulative alphas at DPM-Solver's times: log alpha is linear between training steps."""
    known = np.log(cosine_alphas_cumprod()[: CLIP_DDPM + 1])
    places = np.linspace(0, 0.95, len(known) + 1)[1:]
    return np.exp(np.interp(timesteps / 1000, places, known))


@pytest.mark.parametrize("sampler", [SamplerName.DDIM, SamplerName.DPM_SOLVER])
@pytest.mark.parametrize("steps", [2, 9, 50])
def test_exact_noise_leads_straight_to_the_token(sampler: SamplerName, steps: int) -> None:
    """With the true epsilon every deterministic step stays on the line between token and noise."""
    token, epsilon = np.array([0.5, -1.5]), np.array([1.25, 0.25])
    table = step_table(sampler, steps)
    times = table.timesteps.astype(np.float64)
    if sampler is SamplerName.DDIM:
        alphas = np.append(cosine_alphas_cumprod()[times.astype(int)], 1.0)
    else:
        alphas = dpm_alphas(np.append(times, 1000 / (CLIP_DDPM + 1)))
    line = straight(alphas, token, epsilon)
    for step, factors in enumerate(table.coefficients.astype(np.float64)):
        np.testing.assert_allclose(
            factors[0] * line[step] + factors[1] * epsilon, line[step + 1], rtol=2e-4, atol=2e-5
        )


@pytest.mark.parametrize("index", [0, 5, 10])
def test_the_predicted_token_is_that_of_the_step(index: int) -> None:
    """Solved for the token that a step with the middle of the log variances came from."""
    table = step_table(SamplerName.DDPM, 12, temperature=0.8)
    x, epsilon, noise = np.array([0.5, -1.0]), np.array([0.3, -0.7]), np.array([1.5, -2.0])
    of_x, of_epsilon, low, high, scale = table.coefficients[index].astype(np.float64)
    deviation = scale * np.exp(0.5 * (low + high) / 2)
    alpha_bar = cosine_alphas_cumprod()[int(table.timesteps[index])]
    token = (x - np.sqrt(1 - alpha_bar) * epsilon) / np.sqrt(alpha_bar)
    for drawn, added in ((noise, deviation * noise), (None, np.zeros(2))):
        after = of_x * x + of_epsilon * epsilon + added
        found = table.predicted_token(index, x, after, drawn)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, token, rtol=1e-6)


def test_both_dpm_solvers_are_one_update_at_first_order() -> None:
    first, second = (
        step_table(name, 8) for name in (SamplerName.DPM_SOLVER, SamplerName.DPM_SOLVER_PP)
    )
    np.testing.assert_array_equal(first.coefficients, second.coefficients)


def test_temperature_scales_the_noise_only() -> None:
    cold, warm = step_table(SamplerName.DDPM, 12, 0.5), step_table(SamplerName.DDPM, 12, 1.0)
    np.testing.assert_array_equal(cold.coefficients[:, :4], warm.coefficients[:, :4])
    np.testing.assert_allclose(cold.coefficients[:, 4], 0.5 * warm.coefficients[:, 4])


@pytest.mark.parametrize("steps", [0, 1, 1001])
def test_impossible_counts_are_refused(steps: int) -> None:
    with pytest.raises(DisaError):
        step_table(SamplerName.DDPM, steps)
