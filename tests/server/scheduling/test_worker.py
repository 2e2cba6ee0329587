"""The thread of a model."""

import threading
import time
from dataclasses import replace

import pytest

from disa.errors import DisaError
from disa.runtime.generation import Request
from disa.runtime.sampling.noise import PhiloxNoise
from disa.server.scheduling.policy import JoinAtOnce
from disa.server.scheduling.ticket import Event, Failed, Ticket
from disa.server.scheduling.waiting import Draining
from disa.server.scheduling.worker import State, Worker

from ..conftest import PATIENCE, until
from ..fake_family import FakeFamily, fake_model


def test_the_time_to_come_back_is_that_of_a_busy_model(monkeypatch: pytest.MonkeyPatch) -> None:
    family, go = FakeFamily(), threading.Event()
    worker = Worker(
        "fake", lambda: fake_model(family), JoinAtOnce(), max_images=1, warm_up_seconds=0.0
    )

    def tickets(count: int) -> list[Ticket]:
        options = family.options({})
        return [
            Ticket(Request(0, options, PhiloxNoise(0, i)), lambda event: None) for i in range(count)
        ]

    worker.start()
    until(lambda: worker.state is State.READY)
    worker.submit(tickets(4))
    until(lambda: worker.scheduler and worker.scheduler.stats.images == 4)
    family.entered = lambda: go.wait(PATIENCE)
    worker.submit(tickets(9))
    until(lambda: len(worker.queue) == 8)
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + 10 * 3600)
    assert worker.retry_after() == 1, "it had nothing to do for ten hours, and is fast"
    monkeypatch.undo()
    go.set()
    worker.abandon()
    assert worker.join(PATIENCE)


def test_a_model_whose_weights_changed_fails_all_its_images_and_is_not_ready() -> None:
    family, events = FakeFamily(), list[list[Event]]()
    changed = threading.Event()

    def check() -> None:
        if changed.is_set():
            raise DisaError("the plan was overwritten")

    worker = Worker(
        "fake",
        lambda: replace(fake_model(family), check=check),
        JoinAtOnce(),
        max_images=2,
        warm_up_seconds=0.0,
    )
    worker.start()
    until(lambda: worker.state is State.READY)
    family.entered = lambda: changed.wait(PATIENCE)
    tickets = []
    for image in range(4):
        seen: list[Event] = []
        events.append(seen)
        request = Request(0, family.options({}), PhiloxNoise(0, image))
        tickets.append(Ticket(request, seen.append))
    worker.submit(tickets)
    until(lambda: worker.running == 2)
    changed.set()
    assert worker.join(PATIENCE)
    errors = [seen[-1].error for seen in events if isinstance(seen[-1], Failed)]
    assert [type(error) for error in errors] == [DisaError, DisaError, Draining, Draining]
    assert str(errors[0]) == str(errors[1]) == worker.failure == "the plan was overwritten"
    assert worker.state is State.FAILED
    assert worker.running == len(worker.queue) == 0
