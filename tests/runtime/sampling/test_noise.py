import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from disa.runtime.sampling.noise import PhiloxNoise, _box_muller, noise_of


@given(
    st.integers(0, 2**64 - 1), st.lists(st.integers(0, 10**9), min_size=1, max_size=5, unique=True)
)
def test_images_stand_side_by_side(seed: int, images: list[int]) -> None:
    noises = [PhiloxNoise(seed, image) for image in images]
    together = noise_of(noises, 3, 4, (5, 3))
    assert together.shape == (4, 5, len(images), 3)
    for index, noise in enumerate(noises):
        np.testing.assert_array_equal(noise.gaussian(3, 4, (5, 3)), together[:, :, index])


def test_early_draws_do_not_depend_on_the_number_of_steps() -> None:
    few, many = (PhiloxNoise(0, 7).gaussian(2, draws, (3, 16)) for draws in (6, 51))
    np.testing.assert_array_equal(few, many[:6])


def test_seed_image_and_iteration_change_the_noise() -> None:
    draws = [
        PhiloxNoise(seed, image).gaussian(iteration, 2, (4, 4)).tobytes()
        for seed in (0, 1)
        for image in (0, 1)
        for iteration in (0, 1)
    ]
    assert len(set(draws)) == len(draws)


def test_noise_is_standard_normal() -> None:
    noise = noise_of([PhiloxNoise(1, 0), PhiloxNoise(1, 1)], 0, 64, (64, 16)).astype(np.float64)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(noise[:, :, 0].ravel(), noise[:, :, 1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(noise[..., 0::2].ravel(), noise[..., 1::2].ravel())[0, 1]) < 0.01


def test_the_ends_of_the_range_are_finite() -> None:
    """The uniform number of the radius is in the middle of its cell, so that 0 has a logarithm."""
    largest = np.sqrt(2 * 33 * np.log(2))
    found = _box_muller(np.array([0, 2**30 << 32, 2**32 - 1], np.uint64)).reshape(3, 2)
    np.testing.assert_allclose(found[0], [largest, 0], rtol=1e-6)
    np.testing.assert_allclose(found[1], [0, largest], rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found[2], [0, 0], atol=1e-3)


def test_orders_are_permutations_and_differ() -> None:
    order = np.stack([PhiloxNoise(0, image).order(64) for image in range(50)], axis=1)
    np.testing.assert_array_equal(np.sort(order, axis=0), np.tile(np.arange(64)[:, None], 50))
    assert len({column.tobytes() for column in order.T}) == 50
    assert abs(order[0].mean() - 31.5) < 10


def test_the_stream_never_changes() -> None:
    noise = PhiloxNoise(42, 17).gaussian(5, 2, (2, 2)).ravel()
    pinned = [
        0.2935302,
        -0.3046239,
        0.2921163,
        1.1280055,
        -1.2541707,
        -0.5675525,
        -1.4579172,
        0.2961181,
    ]
    np.testing.assert_allclose(noise, pinned, rtol=1e-5)
