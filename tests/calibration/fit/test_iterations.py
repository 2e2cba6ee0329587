import numpy as np
import pytest

from disa.calibration.fit.iterations import Partitions, TimeModel
from disa.calibration.measurement.dependence import Dependence, places_of
from disa.calibration.measurement.tradeoff import Tradeoff
from disa.runtime.families.masked.partition import prediction_counts

COUNTS = np.arange(2, 51)
TOKENS = np.array(prediction_counts(64, 12))
CALL, ROW = 0.002, 0.0005
BACKBONE = 0.1 + 0.001 * (np.cumsum(TOKENS) - TOKENS)
STEPS = np.linspace(50, 5, 12).astype(int).tolist()


def made_up(carry: float = 4.0) -> Partitions:
    difficulty = np.geomspace(1.0, 0.1, 12)
    calls = TOKENS[:, None] * COUNTS.astype(float)
    seconds = CALL * COUNTS + ROW * calls
    error = difficulty[:, None] / COUNTS**2.0
    tradeoff = Tradeoff(COUNTS, error, calls, seconds, TOKENS, np.geomspace(carry, 1.0, 12))
    places = places_of(64)
    # Early tokens say most of what can be said.
    said = 1 - np.exp(-places / 10)
    lost = np.triu(said[None] - said[:, None])
    return Partitions(tradeoff, BACKBONE, Dependence(places, lost, lost))


def test_time_is_found_again() -> None:
    calls = TOKENS[:, None] * COUNTS.astype(float)
    seconds = CALL * COUNTS + ROW * calls
    model = TimeModel.of(
        Tradeoff(COUNTS, np.ones_like(calls), calls, seconds, TOKENS, np.ones(12)), BACKBONE
    )
    assert (model.call, model.row) == (pytest.approx(CALL), pytest.approx(ROW))
    known = np.cumsum(TOKENS) - TOKENS
    np.testing.assert_allclose(model.backbone[known], BACKBONE)
    noisy = BACKBONE + np.where(np.arange(12) == 5, 0.05, 0)
    assert (np.diff(TimeModel.of(made_up()._measured, noisy).backbone) >= 0).all()


def test_the_measured_partition_is_described_as_measured() -> None:
    partitions = made_up()
    found = partitions.describe(TOKENS.tolist(), STEPS)
    measured = partitions._measured
    assert found.backbone_seconds == pytest.approx(BACKBONE.sum())
    assert found.head_seconds == pytest.approx(measured.of(STEPS, "time")[1])
    assert found.calls == pytest.approx(measured.of(STEPS, "calls")[1])
    assert found.error == pytest.approx(measured.of(STEPS, "calls")[0], rel=0.1)
    np.testing.assert_allclose(found.tradeoff.error, measured.error)


def test_one_at_a_time_nothing_is_lost() -> None:
    partitions = made_up()
    assert partitions.dependence([1] * 64) == 0
    assert partitions.dependence([2] * 32) < partitions.dependence([4] * 16)
    assert partitions.dependence([1] * 32 + [32]) < partitions.dependence([32] + [1] * 32)


def test_less_time_at_no_larger_error() -> None:
    partitions = made_up()
    before = partitions.describe(TOKENS.tolist(), STEPS)
    found = partitions.fit(STEPS, "quality", None)
    assert sum(found.tokens) == 64
    assert min(found.tokens) >= 1
    assert len(found.steps) == len(found.tokens) <= 12
    assert found.error <= before.error
    assert found.dependence <= before.dependence * (1 + 1e-6)
    assert found.seconds < before.seconds
    # A uniform split of as many iterations loses more: early tokens say most.
    assert found.tokens[0] < found.tokens[-1]


def test_a_smaller_error_in_no_more_time() -> None:
    partitions = made_up()
    before = partitions.describe(TOKENS.tolist(), STEPS)
    found = partitions.fit(STEPS, "cost", None)
    assert found.seconds <= before.seconds
    assert found.error < before.error
    assert found.dependence <= before.dependence * (1 + 1e-6)


def test_a_target_is_that_of_the_steps() -> None:
    partitions = made_up()
    loose = partitions.fit(STEPS, "quality", 0.01)
    assert loose.error <= 0.01
    assert loose.seconds < partitions.fit(STEPS, "quality", 0.001).seconds
    impossible = partitions.fit(STEPS, "quality", 1e-9)
    assert impossible.error > 1e-9
    assert impossible.steps == [50] * 12


def test_the_search_is_exact_for_dependence() -> None:
    """Against all partitions of a few tokens."""
    tokens = np.array([2, 2, 4])
    places = places_of(8)
    rng = np.random.default_rng(0)
    lost = np.triu(rng.uniform(0.1, 1.0, (len(places),) * 2), 1)
    calls = tokens[:, None] * COUNTS.astype(float)
    tradeoff = Tradeoff(COUNTS, 1 / calls, calls, calls, tokens, np.ones(3))
    partitions = Partitions(tradeoff, np.ones(3), Dependence(places, lost, lost))
    before = partitions.describe([2, 2, 4], [9, 9, 9])
    least = {
        count: min(partitions.dependence(parts) for parts in compositions(8) if len(parts) == count)
        for count in (1, 2, 3)
    }
    found: dict[int, float] = {}
    for parts in partitions._candidates(before, [9, 9, 9]):
        assert sum(parts) == 8
        value = partitions.dependence(parts)
        found[len(parts)] = min(value, found.get(len(parts), np.inf))
    assert found == pytest.approx(least)


def compositions(total: int) -> list[list[int]]:
    if total == 0:
        return [[]]
    return [[n, *rest] for n in range(1, total + 1) for rest in compositions(total - n)]
