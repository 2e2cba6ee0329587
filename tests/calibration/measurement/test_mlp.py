import numpy as np

from disa.calibration.measurement.mlp import MLP

RNG = np.random.default_rng(1)
X = RNG.standard_normal((3000, 8)).astype(np.float32)
Y = np.stack([np.abs(X[:, 0]) + 5, 100 * X[:, 1] * (X[:, 2] > 0)], axis=1).astype(np.float32)


HELD_OUT = np.arange(2500) % 5 == 0


def trained(outputs: np.ndarray, seed: int = 0, updates: int = 2000) -> MLP:
    return MLP(X[:2500], outputs[:2500], HELD_OUT, seed, updates)


def test_it_learns_what_no_linear_map_can() -> None:
    predicted = trained(Y).predict(X[2500:])
    assert (np.square(predicted - Y[2500:]).mean(axis=0) / Y.var(axis=0)).mean() < 0.1


def test_noise_is_not_learned() -> None:
    noise = RNG.standard_normal((3000, 2)).astype(np.float32)
    predicted = trained(noise).predict(X[2500:])
    assert 0.9 < np.square(predicted - noise[2500:]).mean() < 1.1


def test_few_rows_give_the_linear_part() -> None:
    """More inputs than rows: what is linear and strong is still found."""
    inputs = RNG.standard_normal((300, 200)).astype(np.float32)
    outputs = (inputs[:, :2] * 3 + RNG.standard_normal((300, 2))).astype(np.float32)
    network = MLP(inputs[:150], outputs[:150], np.arange(150) % 5 == 0, 0)
    error = np.square(network.predict(inputs[150:]) - outputs[150:]).mean()
    assert error < 0.75 * outputs.var()


def test_the_seed_decides() -> None:
    first, second, other = (trained(Y, seed, 50).predict(X[:9]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-4
