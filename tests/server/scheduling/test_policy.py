"""How many waiting images join, for each policy."""

import pytest

from disa.server.scheduling.policy import (
    Cohorts,
    JoinAtOnce,
    OneAtATime,
    Policy,
    Static,
    make_policy,
)


@pytest.mark.parametrize(
    ("policy", "waited", "cohorts", "room", "joining"),
    [
        (JoinAtOnce(), [0.0, 0.0, 0.0], 5, 2, 2),
        (JoinAtOnce(), [0.0], 0, 8, 1),
        (Cohorts(2), [0.0, 0.0], 1, 8, 2),
        (Cohorts(2), [9.0, 9.0], 2, 8, 0),
        (Static(1.0), [0.5, 0.1], 0, 8, 0),
        (Static(1.0), [1.0, 0.1], 0, 8, 2),
        (Static(1.0), [0.0] * 9, 0, 8, 8),
        (Static(1.0), [5.0], 1, 8, 0),
        (OneAtATime(), [1.0, 1.0], 0, 8, 1),
        (OneAtATime(), [1.0, 1.0], 1, 8, 0),
    ],
)
def test_images_that_join(
    policy: Policy, waited: list[float], cohorts: int, room: int, joining: int
) -> None:
    assert policy.admit(waited, cohorts, room) == joining


def test_only_static_batches_wait() -> None:
    assert Static(1.0).delay(0.25) == 0.75
    assert Static(1.0).delay(2.0) == 0.0
    assert [p.delay(0.0) for p in (JoinAtOnce(), Cohorts(1), OneAtATime())] == [0.0] * 3


def test_policies_by_name() -> None:
    names = ("join", "cohorts", "static", "single")
    expected = [JoinAtOnce(), Cohorts(3), Static(0.5), OneAtATime()]
    assert [make_policy(name, 3, 0.5) for name in names] == expected
