import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.runtime.families.masked.partition import Order, generation_order, prediction_counts
from disa.runtime.sampling.noise import PhiloxNoise

from ....conftest import GOLDEN


@given(st.integers(1, 600), st.data())
def test_every_iteration_predicts_and_all_tokens_are_predicted(
    tokens: int, data: st.DataObject
) -> None:
    iterations = data.draw(st.integers(1, tokens))
    counts = prediction_counts(tokens, iterations)
    assert len(counts) == iterations
    assert min(counts) >= 1
    assert sum(counts) == tokens


def test_the_official_counts() -> None:
    meta = json.loads(str(np.load(GOLDEN / "mar" / "linear_cfg.npz")["meta"]))
    halves_and_images = 2 * meta["batch"]
    recorded = [step["rows"] // halves_and_images for step in meta["steps"]]
    assert prediction_counts(64, meta["num_iter"]) == recorded


def test_more_iterations_than_tokens_are_refused() -> None:
    assert prediction_counts(16, 16) == [1] * 16
    with pytest.raises(DisaError, match="at most 16"):
        prediction_counts(16, 17)


@pytest.mark.parametrize(
    ("tokens", "iterations", "order", "counts"),
    [
        (64, 5, Order.RANDOM, [4, 9, 14, 18, 19]),
        (64, 1, Order.RANDOM, [64]),
        (64, 1, Order.CHECKERBOARD, [64]),
        (9, 7, Order.RANDOM, [1, 1, 1, 1, 2, 1, 2]),
        (9, 2, Order.CHECKERBOARD, [5, 4]),
        (64, 8, Order.CHECKERBOARD, [1, 3, 3, 6, 6, 6, 7, 32]),
        (64, 12, Order.CHECKERBOARD, [1, 1, 2, 3, 3, 4, 4, 5, 4, 5, 16, 16]),
        (9, 8, Order.CHECKERBOARD, [1, 1, 1, 1, 1, 1, 1, 2]),  # As few as the first half has.
        (9, 9, Order.CHECKERBOARD, [1] * 9),
        (10, 8, Order.CHECKERBOARD, [1, 1, 1, 1, 1, 1, 2, 2]),
    ],
)
def test_counts(tokens: int, iterations: int, order: Order, counts: list[int]) -> None:
    assert prediction_counts(tokens, iterations, order) == counts


@given(st.integers(1, 300), st.data())
def test_a_checkerboard_predicts_one_colour_before_the_other(
    tokens: int, data: st.DataObject
) -> None:
    iterations = data.draw(st.integers(1, tokens))
    counts = prediction_counts(tokens, iterations, Order.CHECKERBOARD)
    assert len(counts) == iterations
    assert min(counts) >= 1
    assert sum(counts) == tokens
    if iterations > 1:
        assert (tokens + 1) // 2 in np.cumsum(counts)


def test_the_second_half_of_a_checkerboard_is_fast() -> None:
    counts = prediction_counts(256, 64, Order.CHECKERBOARD)
    assert counts[-8:] == [16] * 8
    assert counts[:56] == prediction_counts(128, 56)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (5, 3), (1, 7), (6, 4), (1, 1)])
def test_the_first_half_has_no_neighbours(grid: tuple[int, int]) -> None:
    height, width = grid
    noise = PhiloxNoise(3, 1)
    order = generation_order(noise, grid, Order.CHECKERBOARD)
    assert sorted(order) == list(range(height * width))
    first = {(p // width, p % width) for p in order[: (height * width + 1) // 2].tolist()}
    assert not any(
        (row, column + 1) in first or (row + 1, column) in first for row, column in first
    )
    other = generation_order(PhiloxNoise(3, 2), grid, Order.CHECKERBOARD)
    assert height * width < 4 or other.tolist() != order.tolist()


def test_random_is_the_noise_of_the_image() -> None:
    noise = PhiloxNoise(3, 1)
    found = generation_order(noise, (4, 6), Order.RANDOM)
    np.testing.assert_array_equal(found, noise.order(24))
