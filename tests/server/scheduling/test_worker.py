"""The thread of a model."""

import threading
import time

import pytest

from disa.runtime.generation import Request
from disa.runtime.sampling.noise import PhiloxNoise
from disa.server.scheduling.policy import JoinAtOnce
from disa.server.scheduling.ticket import Ticket
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
