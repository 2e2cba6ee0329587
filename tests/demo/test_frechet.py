import numpy as np
import pytest

from demo.frechet import Moments, frechet_distance


def test_diagonal_normals_have_a_closed_form() -> None:
    a = Moments(np.array([0.0, 1.0]), np.diag([4.0, 1.0]))
    b = Moments(np.array([3.0, 1.0]), np.diag([1.0, 9.0]))
    # shift 3^2, then (2 - 1)^2 + (1 - 3)^2 of the deviations
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 4)


def test_covariances_that_do_not_commute() -> None:
    a = Moments(np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))
    b = Moments(np.zeros(2), np.array([[1.0, 0.0], [0.0, 4.0]]))
    product = np.linalg.eigvals(a.covariance @ b.covariance)
    expected = 4 + 5 - 2 * np.sqrt(product).sum()
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_moments_of_samples() -> None:
    random = np.random.default_rng(0)
    near = Moments.of(random.normal(0, 1, (20000, 3)).astype(np.float32))
    far = Moments.of(random.normal(2, 1, (20000, 3)).astype(np.float32))
    assert frechet_distance(near, near) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(near, far) == pytest.approx(12, rel=0.05)
