import numpy as np
import pytest
from numpy.random import SeedSequence

from disa.calibration.measurement.coupled_noise import coupled_noise, information
from disa.runtime.sampling.flow import euler_maruyama_table, euler_table
from disa.runtime.sampling.sampler import StepTable, cosine_alphas_cumprod, ddpm_table

RNG = np.random.default_rng(0)


def known_answer(table: StepTable, noise: np.ndarray, spread: float) -> np.ndarray:
    """What a sampler makes of a head that knows tokens with this deviation around zero."""
    x = noise[0].astype(np.float64)
    for index, row in enumerate(table.coefficients.astype(np.float64)):
        place = table.places[index]
        if len(row) == 5:
            alpha_bar = cosine_alphas_cumprod()[int(place)]
            signal, level = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        else:
            signal, level = 1 - place, place
        token = signal * spread**2 / (signal**2 * spread**2 + level**2) * x
        epsilon = (x - signal * token) / level
        if len(row) == 5:
            deviation = row[4] * np.exp(0.5 * row[2])
            x = row[0] * x + row[1] * epsilon + deviation * noise[1 + index]
        else:
            x = row[0] * x + row[1] * (epsilon - token) + row[2] * noise[1 + index]
    return x


@pytest.mark.parametrize("steps", [8, 25, 50])
@pytest.mark.parametrize("make", [lambda n: ddpm_table(n, 1.0), euler_maruyama_table])
def test_few_steps_follow_many(make: object, steps: int) -> None:
    many, few = make(100), make(steps)  # type: ignore[operator]
    noise = RNG.standard_normal((1 + len(many), 500, 4)).astype(np.float32)
    coupled = coupled_noise(noise, many, few, SeedSequence(0))
    # What the last step would be given is not used.
    drawn = coupled[:-1]
    assert abs(drawn.mean()) < 0.02
    assert drawn.std() == pytest.approx(1, abs=0.02)
    between = np.corrcoef(drawn.reshape(len(drawn), -1)) - np.eye(len(drawn))
    assert np.abs(between).max() < 0.12
    reference = known_answer(many, noise, 0.5)
    with_it = np.square(known_answer(few, coupled, 0.5) - reference).mean()
    start = np.concatenate([noise[:1], RNG.standard_normal(coupled[1:].shape)])
    without = np.square(known_answer(few, start, 0.5) - reference).mean()
    assert with_it < (0.2 if steps > 8 else 0.5) * without


def test_the_same_steps_get_the_same_noise() -> None:
    for table in (ddpm_table(30, 1.0), euler_maruyama_table(30), euler_table(30)):
        noise = RNG.standard_normal((1 + len(table), 3, 2)).astype(np.float32)
        coupled = coupled_noise(noise, table, table, SeedSequence(0))
        np.testing.assert_allclose(coupled[:-1], noise[:-1], rtol=1e-6)
        assert (np.diff(information(table)) > 0).all()


def test_more_steps_than_there_is_noise_for() -> None:
    many, few = ddpm_table(100, 1.0), ddpm_table(20, 1.0)
    noise = RNG.standard_normal((1 + len(few), 2000, 2)).astype(np.float32)
    coupled, other = (coupled_noise(noise, few, many, SeedSequence(n)) for n in (0, 1))
    np.testing.assert_allclose(coupled[1:-1].std(axis=(1, 2)), 1, atol=0.1)
    # Samples that are to be independent share only the noise that they were given.
    alike = (coupled == other).all(axis=(1, 2))
    assert 1 + len(few) - 2 <= alike.sum() <= 1 + len(few)
