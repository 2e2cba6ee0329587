from itertools import combinations

import numpy as np
import pytest

from disa.calibration.fit.refresh import cheapest, refresh_choices
from disa.calibration.measurement.refresh import RefreshErrors

COUNT = 6
PLACES = np.arange(COUNT)
RNG = np.random.default_rng(2)
GAP = np.clip(np.subtract.outer(PLACES, PLACES).T, 0, None)
ERROR = GAP * RNG.uniform(0.5, 1.5, COUNT)
SHARE = RNG.dirichlet(np.ones(COUNT))
FULL, REUSE, PLAIN = np.full(COUNT, 4.0), np.full(COUNT, 1.0), np.full(COUNT, 3.0)


def made_up() -> RefreshErrors:
    tokens = np.full(COUNT, 2)
    return RefreshErrors(tokens, PLACES, ERROR, np.zeros_like(ERROR), FULL, REUSE)


def error_of(passes: tuple[int, ...]) -> float:
    last = [max(place for place in passes if place <= index) for index in PLACES]
    return float(sum(ERROR[last[index], index] * SHARE[index] for index in PLACES))


def test_every_choice_is_the_best_of_its_size() -> None:
    choices = refresh_choices(made_up(), SHARE, PLAIN)
    for size, choice in enumerate(choices, start=1):
        assert len(choice.passes) == size
        assert choice.passes[0] == 0
        others = [(0, *rest) for rest in combinations(range(1, COUNT), size - 1)]
        assert choice.error == pytest.approx(min(map(error_of, others)))
        assert choice.error == pytest.approx(error_of(choice.passes))
        if size < COUNT:
            assert choice.backbone_seconds == 4 * size + (COUNT - size)
    assert (choices[-1].error, choices[-1].backbone_seconds) == (0, PLAIN.sum())


def test_the_cheapest_that_is_good_enough() -> None:
    choices = refresh_choices(made_up(), SHARE, PLAIN)
    assert cheapest(choices, 1e9) == choices[0]
    assert cheapest(choices, choices[1].error) == choices[1]
    # Five full passes and one other take longer than the exact loop.
    assert cheapest(choices, choices[4].error) == choices[-1]
    assert cheapest(choices, 0.0) == choices[-1]


def test_between_the_places_errors_fall_towards_the_full_pass() -> None:
    places = np.array([0, 3])
    error = np.array([[0.0, 1, 2, 3, 4], [0, 0, 0, 0, 1]])
    every = RefreshErrors(np.ones(5), places, error, error, error[0], error[0]).every
    np.testing.assert_allclose(every[0], error[0])
    np.testing.assert_allclose(every[3], error[1])
    assert every[1, 3] == pytest.approx(2.0)
    assert every[1, 4] == pytest.approx(3.0)
    assert not np.tril(every).any()
    # What is measured the wrong way round is noise.
    wrong = np.array([[0.0, 1, 1, 1, 1], [0, 0, 0, 0, 3]])
    found = RefreshErrors(np.ones(5), places, wrong, wrong, error[0], error[0]).every
    assert found[0, 4] == found[3, 4] == 2
