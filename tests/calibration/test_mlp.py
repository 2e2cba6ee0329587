import numpy as np

from disa.calibration.mlp import MLP

RNG = np.random.default_rng(1)
X = RNG.standard_normal((3000, 8)).astype(np.float32)
Y = np.stack([np.abs(X[:, 0]) + 5, 100 * X[:, 1] * (X[:, 2] > 0)], axis=1).astype(np.float32)


def error(network: MLP, rows: slice) -> float:
    return float((np.square(network.predict(X[rows]) - Y[rows]) / Y.var(axis=0)).mean())


def test_it_learns_what_no_linear_map_can() -> None:
    assert error(MLP(X[:2500], Y[:2500], 0), slice(2500, None)) < 0.1


def test_noise_is_not_learned() -> None:
    noise = RNG.standard_normal((3000, 2)).astype(np.float32)
    predicted = MLP(X[:2500], noise[:2500], 0).predict(X[2500:])
    assert 0.9 < np.square(predicted - noise[2500:]).mean() < 1.4


def test_the_seed_decides() -> None:
    first, second, other = (MLP(X, Y, seed, 50).predict(X[:9]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-4
