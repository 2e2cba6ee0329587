"""Items that take different steps share calls, and none sees that it is not alone."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from disa.runtime.families.flow.xar import euler_maruyama_subsample
from disa.runtime.sampling.denoise import (
    Steps,
    all_steps,
    denoise,
    joined,
    noise_of_steps,
    run_ranges,
    take,
)
from disa.runtime.sampling.flow import euler_maruyama_table
from disa.runtime.sampling.sampler import StepTable

CHANNELS = 3
Floats = np.ndarray


@dataclass(frozen=True)
class Head:
    """Predicts a velocity that bends with the item and its time; notes what it is called for.

    Attributes:
        bend: of each item, [items].
        step_noise: [all steps, items, C].
        calls: rows of each step so far.
    """

    bend: Floats
    step_noise: Floats
    calls: list[int] = field(default_factory=list)

    @property
    def items(self) -> int:
        return len(self.bend)

    def run_steps(self, table: StepTable, step: Floats, drawn: Floats, x: Floats) -> Floats:
        noise = noise_of_steps(self.step_noise, drawn, len(step))
        for index, own in zip(step, noise, strict=True):
            self.calls.append(len(index))
            factors = table.coefficients[index][:, :, None]
            velocity = self.bend[:, None] * np.tanh(x + 0.002 * table.timesteps[index][:, None])
            x = factors[:, 0] * x + factors[:, 1] * velocity + factors[:, 2] * own
        return x

    def noise(self, draw: int) -> Floats:
        return self.step_noise[draw]

    def select(self, items: Floats) -> "Head":
        return replace(self, bend=self.bend[items], step_noise=self.step_noise[:, items])


def head(items: int) -> tuple[Head, Floats]:
    random = np.random.default_rng(1)
    noise = random.standard_normal((60, items, CHANNELS))
    return Head(np.linspace(0.1, 2, items), noise), random.standard_normal((items, CHANNELS))


def steps(count: int, tolerance: float = 0.0) -> Steps:
    return Steps(euler_maruyama_table(count), tolerance, euler_maruyama_subsample)


@pytest.mark.parametrize("tolerance", [0.0, 0.2, 1.0])
def test_company_changes_nothing(tolerance: float) -> None:
    plans = [steps(30, tolerance), steps(7), steps(50, tolerance), steps(3, tolerance)]
    plan_of = np.array([1, 0, 2, 0, 3, 2])
    everyone, start = head(len(plan_of))
    sampled, taken = denoise(everyone, plans, plan_of, start)
    assert sum(everyone.calls) == taken.sum()
    for item, plan in enumerate(plan_of):
        alone, single = everyone.select(np.array([item])), start[[item]]
        own, count = denoise(alone, [plans[plan]], np.zeros(1, np.int64), single)
        np.testing.assert_allclose(np.asarray(sampled)[item], np.asarray(own)[0], rtol=1e-12)
        assert taken[item] == count[0]
    if not tolerance:
        assert taken.tolist() == [7, 30, 50, 30, 3, 50]
    else:
        assert taken[2] < 50
        assert taken[0] == 7  # It was not asked for a tolerance.


def test_calls_are_shared_and_get_smaller_as_items_end() -> None:
    everyone, start = head(3)
    denoise(everyone, [steps(2), steps(4)], np.array([0, 1, 0]), start)
    assert everyone.calls == [3, 3, 1, 1]


def test_states_are_remembered_at_marks_in_the_order_of_the_items() -> None:
    everyone, start = head(2)
    ranges = all_steps([steps(2), steps(5)], np.array([0, 1]))
    end, states = run_ranges(everyone, ranges, start, [1, 3, 9])
    assert sorted(states) == [1, 3]
    long = run_ranges(everyone.select(np.array([1])), all_steps([steps(5)], np.array([0])),
                    start[[1]], [1, 3])[1]  # fmt: skip
    for mark in (1, 3):
        np.testing.assert_allclose(states[mark][1], long[mark][0])
    # The first was at its end when the second had taken three steps.
    np.testing.assert_allclose(states[3][0], np.asarray(end)[0])
    assert not np.allclose(states[1][0], states[3][0])


def test_who_asks() -> None:
    assert steps(50).first is None
    assert steps(50, 0.1).first == 10
    assert steps(5, 0.1).first == 2
    assert steps(4, 0.1).first is None


def test_noise_of_items_that_took_different_numbers_of_steps() -> None:
    noise = np.arange(5 * 2 * CHANNELS).reshape(5, 2, CHANNELS)
    equal = noise_of_steps(noise, np.array([1, 1]), 2)
    np.testing.assert_array_equal(equal, noise[1:3])
    assert np.shares_memory(equal, noise)
    mixed = noise_of_steps(noise, np.array([0, 3]), 2)
    np.testing.assert_array_equal(mixed[:, 0], noise[0:2, 0])
    np.testing.assert_array_equal(mixed[:, 1], noise[3:5, 1])


def test_all_items_are_not_copied() -> None:
    array = np.arange(12.0).reshape(2, 6)
    assert take(array, np.arange(6), 1) is array
    np.testing.assert_array_equal(take(array, np.array([4, 0]), 1), array[:, [4, 0]])
    np.testing.assert_array_equal(take(array, np.array([1]), 0), array[[1]])
    np.testing.assert_array_equal(take(array, np.array([1, 0]), 0), array[::-1])
    np.testing.assert_array_equal(take(array, np.arange(5), 1), array[:, :5])
    one = euler_maruyama_table(4)
    assert joined([one]) is one
    assert len(joined([one, euler_maruyama_table(6)])) == 10
