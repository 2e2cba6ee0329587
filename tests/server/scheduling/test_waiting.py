"""The bounded queue before a model."""

import threading
import time

import pytest

from disa.runtime.generation import Request
from disa.runtime.sampling.noise import PhiloxNoise
from disa.server.scheduling.observer import NullObserver
from disa.server.scheduling.ticket import Ticket
from disa.server.scheduling.waiting import Draining, QueueFull, WaitingQueue


def tickets(count: int) -> list[Ticket]:
    request = Request(0, None, PhiloxNoise(0, 0))
    return [Ticket(request, lambda event: None, submitted=float(i)) for i in range(count)]


def test_all_images_of_a_request_are_queued_or_none() -> None:
    queue = WaitingQueue(4)
    queue.put(tickets(3))
    with pytest.raises(QueueFull, match="at most 4"):
        queue.put(tickets(2))
    assert len(queue) == 3
    queue.put(tickets(1))
    assert len(queue) == 4


def test_the_first_come_first() -> None:
    queue, all_of_them = WaitingQueue(4), tickets(3)
    queue.put(all_of_them)
    assert queue.pop(2) == all_of_them[:2]
    assert queue.pop(2) == all_of_them[2:]


def test_cancelled_images_leave() -> None:
    queue, all_of_them = WaitingQueue(4), tickets(3)
    queue.put(all_of_them)
    all_of_them[1].cancel()
    assert queue.submitted() == [0.0, 2.0]
    assert len(queue) == 2


class Ended(NullObserver):
    def __init__(self) -> None:
        self.found: list[tuple[Ticket, str]] = []

    def ended(self, ticket: Ticket, outcome: str) -> None:
        self.found.append((ticket, outcome))


def test_images_that_are_cancelled_while_they_wait_are_reported_once() -> None:
    observer = Ended()
    queue, waiting = WaitingQueue(4, observer), tickets(3)
    queue.put(waiting)
    waiting[0].cancel()
    queue.submitted()
    queue.submitted()
    waiting[2].cancel()
    assert queue.close() == [waiting[1]]
    assert observer.found == [(waiting[0], "cancelled"), (waiting[2], "cancelled")]


def test_a_closed_queue_returns_the_waiting_images_and_accepts_no_more() -> None:
    queue, waiting = WaitingQueue(4), tickets(2)
    queue.put(waiting)
    assert queue.close() == waiting
    assert len(queue) == 0
    with pytest.raises(Draining):
        queue.put(tickets(1))


def test_waiting_ends_when_an_image_arrives_or_time_is_up() -> None:
    queue = WaitingQueue(4)
    threading.Timer(0.05, lambda: queue.put(tickets(1))).start()
    queue.wait(20.0)
    assert len(queue) == 1
    start = time.monotonic()
    queue.wait(0.05, count=1)
    assert 0.04 < time.monotonic() - start < 10
