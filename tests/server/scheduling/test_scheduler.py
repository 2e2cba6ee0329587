"""Which images share a step, and which images a failure affects."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disa.errors import EngineError, OutOfMemory
from disa.runtime.generation import Request, Sample
from disa.runtime.sampling.noise import PhiloxNoise
from disa.server.scheduling.policy import Cohorts, JoinAtOnce, OneAtATime, Policy, Static
from disa.server.scheduling.scheduler import GROWTH_ROUNDS, NotFinite, Scheduler
from disa.server.scheduling.ticket import (
    Advanced,
    Event,
    Failed,
    Finished,
    Previewed,
    Started,
    Ticket,
)
from disa.server.scheduling.waiting import WaitingQueue

from ..fake_family import FakeFamily, picture


class Bench:
    """A scheduler on a fake model with a clock that is set by hand."""

    def __init__(self, policy: Policy | None = None, max_images: int = 8, queue: int = 100) -> None:
        self.family = FakeFamily()
        self.now = 0.0
        self.queue = WaitingQueue(queue)
        self.scheduler = Scheduler(
            self.family, policy or JoinAtOnce(), self.queue, max_images, clock=lambda: self.now
        )

    def submit(self, count: int = 1, previews: int = 0, **options: Any) -> list["Followed"]:
        followed = [Followed(self.family, seed, previews, options) for seed in range(count)]
        for one in followed:
            one.ticket.submitted = self.now
        self.queue.put([one.ticket for one in followed])
        return followed

    def run(self, rounds: int = 1000) -> None:
        while rounds and self.scheduler.tick():
            rounds -= 1
        assert rounds, "it did not come to an end"


class Followed:
    """A ticket and its events."""

    def __init__(self, family: FakeFamily, seed: int, previews: int, options: Any) -> None:
        self.request = Request(1, family.options(options), PhiloxNoise(seed, 0))
        self.events: list[Event] = []
        self.ticket = Ticket(self.request, self.events.append, previews=previews)

    @property
    def end(self) -> Event:
        ends = [event for event in self.events if isinstance(event, Finished | Failed)]
        assert len(ends) == 1, "an image ends once"
        assert self.events[-1] is ends[0]
        return ends[0]

    @property
    def good(self) -> bool:
        end = self.end
        if not isinstance(end, Finished):
            return False
        wanted = picture(self.request, self.request.options.num_iterations)
        np.testing.assert_array_equal(end.output.image, wanted)
        return True

    @property
    def error(self) -> Exception:
        assert isinstance(self.end, Failed)
        return self.end.error


def failing_for(seeds: Sequence[int], error: Exception) -> Callable[[Sequence[Sample]], None]:
    def check(samples: Sequence[Sample]) -> None:
        if any(sample.request.noise.seed in seeds for sample in samples):
            raise error

    return check


def test_images_join_the_running_ones() -> None:
    bench = Bench()
    [first] = bench.submit()
    bench.scheduler.tick()
    [second] = bench.submit(num_iterations=2)
    bench.run()
    assert first.good
    assert second.good
    assert bench.family.steps == [1, 2, 2, 1], "both were stepped together meanwhile"


def test_no_more_images_than_allowed_and_the_first_come_first() -> None:
    bench = Bench(max_images=2)
    images = bench.submit(5)
    ended = []
    while bench.scheduler.tick():
        ended += [i for i, one in enumerate(images) if one.events and i not in ended]
        assert len(bench.scheduler.running) <= 2
    assert ended == [0, 1, 2, 3, 4]
    assert all(one.good for one in images)


def test_a_cancelled_image_leaves_at_the_next_iteration() -> None:
    bench = Bench()
    images = bench.submit(3)
    bench.scheduler.tick()
    images[1].ticket.cancel()
    bench.run()
    assert bench.family.steps == [3, 2, 2, 2]
    assert not any(isinstance(event, Finished | Failed) for event in images[1].events)
    assert images[0].good
    assert images[2].good


def test_a_cancelled_image_leaves_the_queue() -> None:
    bench = Bench(max_images=1, queue=2)
    first, second = bench.submit(2)
    second.ticket.cancel()
    bench.scheduler.tick()
    assert len(bench.queue) == 0
    bench.run()
    assert first.good
    assert second.events == []


def test_what_fails_fails_alone() -> None:
    bench = Bench()
    error = EngineError("broken")
    bench.family.failing = failing_for([2, 5], error)
    images = bench.submit(8)
    bench.run()
    assert [one.good for one in images] == [i not in (2, 5) for i in range(8)]
    assert images[2].error is error


@pytest.mark.parametrize("stage", ["failing_start", "failing_finish"])
def test_what_fails_at_the_start_or_the_end_fails_alone(stage: str) -> None:
    bench = Bench()

    def check(items: Sequence[Any]) -> None:
        requests = [getattr(item, "request", item) for item in items]
        if any(request.noise.seed == 3 for request in requests):
            raise ValueError("this one")

    setattr(bench.family, stage, check)
    images = bench.submit(5)
    bench.run()
    assert [one.good for one in images] == [True, True, True, False, True]


def test_no_image_of_changed_weights_is_given_out() -> None:
    bench = Bench()

    def check() -> None:
        if bench.now > 0:
            raise EngineError("the weights changed")

    bench.scheduler.check = check
    running = bench.submit(3)
    bench.scheduler.tick()
    bench.now = 1.0
    waiting = bench.submit(2)
    bench.run()
    assert {str(one.error) for one in (*running, *waiting)} == {"the weights changed"}
    assert all(len(one.events) == 1 for one in waiting), "they are not even started"


def test_numbers_that_are_not_finite_fail_their_image() -> None:
    bench = Bench()
    bench.family.finite = lambda sample: sample.request.noise.seed != 1
    images = bench.submit(3)
    bench.run()
    assert [one.good for one in images] == [True, False, True]
    assert isinstance(images[1].error, NotFinite)


@pytest.mark.parametrize("error", [OutOfMemory("the device is full"), MemoryError()])
def test_out_of_memory_halves_the_batch_and_goes_on(error: Exception) -> None:
    bench = Bench(max_images=8)

    def check(samples: Sequence[Sample]) -> None:
        if len(samples) > 3:
            raise error

    bench.family.failing = check
    images = bench.submit(8)
    bench.run()
    assert all(one.good for one in images)
    assert bench.family.steps == [2] * 16
    assert bench.scheduler.together == 2


def test_the_batch_grows_again_after_a_while() -> None:
    bench = Bench(max_images=8)
    bench.scheduler.together = 2
    for _ in range(GROWTH_ROUNDS):
        bench.submit(1, num_iterations=1)
        bench.scheduler.tick()
    assert bench.scheduler.together == 2
    for _ in range(2 * GROWTH_ROUNDS + 4):
        bench.submit(1, num_iterations=1)
        bench.scheduler.tick()
    assert bench.scheduler.together == 8


def test_one_image_that_does_not_fit_alone_fails() -> None:
    bench = Bench()
    bench.family.failing = failing_for([0], OutOfMemory("the device is full"))
    images = bench.submit(2)
    bench.run()
    assert [one.good for one in images] == [False, True]


def test_an_image_that_does_not_fit_alone_leaves_the_others_together() -> None:
    bench = Bench(max_images=8)
    bench.family.failing = failing_for([5], OutOfMemory("the device is full"))
    images = bench.submit(8)
    bench.run()
    assert [one.good for one in images] == [i != 5 for i in range(8)]
    assert bench.scheduler.together == 8
    assert bench.family.steps[-3:] == [7, 7, 7]


def test_an_image_that_has_ended_holds_no_arrays() -> None:
    bench = Bench()
    bench.family.failing = failing_for([1], EngineError("broken"))
    finished, failed, cancelled = bench.submit(3, previews=1)
    bench.scheduler.tick()
    cancelled.ticket.cancel()
    bench.run()
    assert finished.good
    assert failed.error
    assert [one.ticket.sample for one in (finished, failed, cancelled)] == [None] * 3


def test_a_preview_that_fails_fails_its_image_alone() -> None:
    bench = Bench()
    preview = bench.family.preview

    def check(samples: Sequence[Sample]) -> list[Any]:
        failing_for([1], EngineError("broken"))(samples)
        return list(preview(samples))

    bench.family.preview = check  # type: ignore[method-assign]
    images = bench.submit(3, previews=1)
    bench.run()
    assert [one.good for one in images] == [True, False, True]


def test_only_the_time_with_images_counts_as_busy() -> None:
    bench = Bench()

    def pass_time() -> None:
        bench.now += 1.0

    bench.family.entered = pass_time
    bench.submit(2)
    bench.run()
    bench.now += 1000.0
    assert not bench.scheduler.tick()
    bench.submit(1, num_iterations=2)
    bench.run()
    assert bench.scheduler.busy_seconds == 6.0


def test_events_come_in_order() -> None:
    bench = Bench()
    [image] = bench.submit(1, previews=1)
    image.ticket.progress = True
    bench.now = 2.0
    bench.run()
    kinds = [type(event) for event in image.events]
    assert kinds == [Started, Advanced, Advanced, Previewed, Advanced, Advanced, Finished]
    assert image.events[0] == Started(2.0)
    assert image.events[2] == Advanced(2, 4, 3)
    preview = image.events[3]
    assert isinstance(preview, Previewed)
    np.testing.assert_array_equal(preview.image, picture(image.request, 2))


def test_images_that_arrive_while_enough_cohorts_run_form_the_next() -> None:
    bench = Bench(Cohorts(2))
    for count in (1, 1, 2):
        bench.submit(count)
        bench.scheduler.tick()
    assert bench.family.steps == [1, 2, 2], "two cohorts are running"
    assert len(bench.queue) == 2
    bench.run()
    assert bench.family.steps == [1, 2, 2, 2, 3, 2, 2, 2]


def test_a_static_batch_is_collected_but_not_for_long() -> None:
    bench = Bench(Static(1.0))
    bench.submit(1)
    assert not bench.scheduler.tick()
    assert bench.scheduler.idle_for() == 1.0
    bench.now = 0.75
    bench.submit(1)
    assert not bench.scheduler.tick()
    assert bench.scheduler.idle_for() == 0.25
    bench.now = 1.0
    bench.run()
    assert bench.family.steps == [2, 2, 2, 2]


def test_a_full_batch_does_not_wait() -> None:
    bench = Bench(Static(1.0), max_images=2)
    bench.submit(3)
    bench.scheduler.tick()
    assert bench.family.steps == [2]


def test_static_batches_run_to_their_end() -> None:
    bench = Bench(Static(0.0), max_images=4)
    bench.submit(1)
    bench.scheduler.tick()
    bench.submit(3)
    bench.run()
    assert bench.family.steps == [1, 1, 1, 1, 3, 3, 3, 3]


def test_one_at_a_time() -> None:
    bench = Bench(OneAtATime())
    bench.submit(2)
    bench.run()
    assert bench.family.steps == [1] * 8


@settings(max_examples=100, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 9)), max_size=12
    ),
    max_images=st.integers(1, 5),
    policy=st.sampled_from([JoinAtOnce(), Cohorts(1), Cohorts(2), Static(3.0), OneAtATime()]),
    bad=st.sets(st.integers(0, 11)),
    cancelled=st.dictionaries(st.integers(0, 11), st.integers(0, 10)),
)
def test_each_image_is_its_own_in_any_company(
    arrivals: list[tuple[int, int, int]],
    max_images: int,
    policy: Policy,
    bad: set[int],
    cancelled: dict[int, int],
) -> None:
    bench = Bench(policy, max_images=max_images)
    bench.family.failing = failing_for(sorted(bad), EngineError("broken"))
    coming = []
    for seed, (gap, iterations, steps) in enumerate(arrivals):
        options = {"num_iterations": iterations, "steps": str(steps)}
        coming.append((gap, Followed(bench.family, seed, 0, options)))
    left, rounds = list(coming), 0
    while left or bench.scheduler.running or len(bench.queue):
        while left and left[0][0] <= 0:
            _, one = left.pop(0)
            one.ticket.submitted = bench.now
            bench.queue.put([one.ticket])
        left = [(gap - 1, one) for gap, one in left[:1]] + left[1:]
        for seed, at in cancelled.items():
            if seed < len(coming) and at == rounds:
                coming[seed][1].ticket.cancel()
        bench.scheduler.tick()
        assert len(bench.scheduler.running) <= max_images
        bench.now, rounds = bench.now + 1, rounds + 1
        assert rounds < 1000, "some image starves"
    for seed, (_, one) in enumerate(coming):
        ended = any(isinstance(event, Finished | Failed) for event in one.events)
        if seed not in cancelled:
            assert one.good == (seed not in bad)
        elif ended:
            _ = one.end
