import numpy as np
import pytest

from disa.calibration.measurement.paths import curvature, path_table, trace
from disa.engines.array_types import Floats
from disa.runtime.sampling.flow import euler_maruyama_table, euler_table
from disa.runtime.sampling.head import Iteration
from disa.runtime.sampling.sampler import StepTable, cosine_alphas_cumprod, ddpm_table

RNG = np.random.default_rng(0)
TOKEN = RNG.standard_normal((5, 3)).astype(np.float32)
NOISE = RNG.standard_normal((5, 3)).astype(np.float32)


def iteration(table: StepTable, spread: float = 0.0) -> Iteration:
    """A head that knows the exact answer for tokens around `TOKEN` with deviation `spread`."""

    def denoise(steps: StepTable, noise: Floats) -> Floats:
        x = noise[0].astype(np.float64)
        for row, timestep in zip(steps.coefficients, steps.timesteps, strict=True):
            if table.coefficients.shape[1] == 5:
                alpha_bar = cosine_alphas_cumprod()[int(timestep)]
                signal, level = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
            else:
                signal, level = 1 - timestep / 1000, timestep / 1000
            gain = signal * spread**2 / (signal**2 * spread**2 + level**2)
            token = TOKEN + gain * (x - signal * TOKEN)
            epsilon = (x - signal * token) / max(level, 1e-9)
            change = epsilon if table.coefficients.shape[1] == 5 else epsilon - token
            x = row[0] * x + row[1] * change
        return x.astype(np.float32)

    return Iteration(0, table, 1.0, np.zeros((1, 5), np.int64), None, TOKEN, ddpm_table_of, denoise)


def ddpm_table_of(steps: int) -> StepTable:
    return ddpm_table(steps, 1.0)


TABLES = [ddpm_table(10, 1.0), euler_table(10), euler_maruyama_table(10)]


@pytest.mark.parametrize("table", TABLES, ids=["ddpm", "flowar", "xar"])
def test_a_certain_token_is_reached_straight(table: StepTable) -> None:
    times, points = trace(iteration(table), NOISE, 20)
    assert times[0] > 0.9
    assert times[-1] == 0
    assert (np.diff(times) < 0).all()
    np.testing.assert_allclose(points[-1], TOKEN, atol=5e-3)
    np.testing.assert_allclose(curvature(times, points), 0, atol=1e-3)


@pytest.mark.parametrize("table", TABLES, ids=["ddpm", "flowar", "xar"])
def test_uncertain_tokens_are_reached_on_bent_paths(table: StepTable) -> None:
    bent = [
        curvature(*trace(iteration(table, spread), NOISE, 20)).mean() for spread in (0.0, 0.3, 1.0)
    ]
    assert bent == sorted(bent)
    assert bent[2] > 0.05


def test_curvature_of_a_known_path() -> None:
    # Along (0,0) -> (1,0) -> (1,1) both parts are off the whole by the same.
    points = np.array([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    np.testing.assert_allclose(curvature(np.array([1.0, 0.5, 0.0]), points), [1.0])


def test_path_tables_add_no_noise() -> None:
    for table in TABLES:
        made, times, scales = path_table(iteration(table), 8)
        assert len(made) == 8
        assert len(times) == len(scales) == 9
        assert not made.coefficients[:, 2:].any()
