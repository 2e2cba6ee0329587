import numpy as np
import pytest

from disa.errors import DisaError
from disa.evaluation.frechet import Moments, MomentsSum, few_images, frechet_distance


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


def test_the_distance_is_never_negative() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        same = Moments.of(random.normal(0, 1, (30, 8)))
        assert frechet_distance(same, same) >= 0


def test_a_distance_that_is_no_number_stays_none() -> None:
    unknown = Moments(np.array([np.nan]), np.eye(1))
    assert np.isnan(frechet_distance(unknown, Moments(np.zeros(1), np.eye(1))))


def test_moments_of_samples() -> None:
    random = np.random.default_rng(0)
    near = Moments.of(random.normal(0, 1, (20000, 3)).astype(np.float32))
    far = Moments.of(random.normal(2, 1, (20000, 3)).astype(np.float32))
    assert frechet_distance(near, near) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(near, far) == pytest.approx(12, rel=0.05)


def test_batches_have_the_moments_of_all() -> None:
    features = np.random.default_rng(0).normal(100, 0.1, (50, 4)).astype(np.float32)
    whole, sums = Moments.of(features), MomentsSum()
    for start in (0, 7, 8, 30):
        sums.add(features[start : {0: 7, 7: 8, 8: 30, 30: 50}[start]])
    np.testing.assert_allclose(sums.moments().mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(sums.moments().covariance, whole.covariance, rtol=1e-9)


def test_a_distance_needs_two_images() -> None:
    sums = MomentsSum()
    sums.add(np.zeros((1, 3), np.float32))
    with pytest.raises(DisaError, match="at least two images"):
        sums.moments()


def test_the_distance_is_that_of_torch_fidelity() -> None:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    random = np.random.default_rng(0)
    sides = [Moments.of(random.normal(s, 1 + s, (300, 24)).astype(np.float32)) for s in (0, 1)]
    statistics = [{"mu": side.mean, "sigma": side.covariance} for side in sides]
    expected = fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(*sides) == pytest.approx(*expected.values(), rel=1e-9)


@pytest.mark.parametrize(
    ("generated", "reference", "told"),
    [
        (2049, 2049, None),
        (50_000, None, None),
        (2048, None, "2048 generated images are few for 2048 features: "),
        (50_000, 7, "7 images of the reference are few for 2048 features: "),
        (9, 7, "9 generated images and 7 images of the reference are few for 2048 features: "),
    ],
)
def test_few_images_are_told(generated: int, reference: int | None, told: str | None) -> None:
    note = few_images(generated, reference, 2048)
    assert note is None if told is None else (note or "").startswith(told)


@pytest.mark.parametrize(("images", "singular"), [(8, True), (9, False)])
def test_few_images_have_a_singular_covariance(images: int, singular: bool) -> None:
    features = np.random.default_rng(0).standard_normal((images, 8)).astype(np.float32)
    rank = np.linalg.matrix_rank(Moments.of(features).covariance)
    assert (rank < 8) == singular == (few_images(images, None, 8) is not None)
