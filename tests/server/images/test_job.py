"""The events of a request's images on the event loop."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from disa.errors import EngineError
from disa.runtime.generation import Cost, Output, Request
from disa.runtime.sampling.noise import PhiloxNoise
from disa.server.http.errors import ApiError
from disa.server.images.encoding import Encoding
from disa.server.images.job import Job
from disa.server.images.validation import ValidatedImage, ValidatedRequest
from disa.server.scheduling.ticket import Advanced, Failed, Finished, Ticket


def request(images: int) -> tuple[ValidatedRequest, list[Ticket]]:
    """A request, and the tickets that its worker receives."""
    submitted: list[Ticket] = []

    def submit(tickets: Sequence[Ticket]) -> None:
        submitted.extend(tickets)

    worker: Any = SimpleNamespace(submit=submit)
    noise = [PhiloxNoise(0, index) for index in range(images)]
    validated = [ValidatedImage(Request(0, None, one), 0, i) for i, one in enumerate(noise)]
    return ValidatedRequest(worker, validated, Encoding(), False, True, 2, True), submitted


def test_events_come_with_the_number_of_their_image() -> None:
    async def run() -> None:
        checked, tickets = request(2)
        job = Job(checked, 20.0)
        assert [(ticket.previews, ticket.progress) for ticket in tickets] == [(2, True)] * 2
        error = EngineError("broken")
        finished = Finished(Output(None, None, True), Cost(), 0.0, 1.0)  # type: ignore[arg-type]
        events = [(1, Advanced(1, 4, 3)), (1, Failed(error)), (0, finished)]
        for number, event in events:
            # As in the thread of the model.
            await asyncio.to_thread(tickets[number].notify, event)
        left = []
        for expected in events:
            assert await job.next(20.0) == expected
            left.append(job.left)
        assert left == [2, 1, 0]

    asyncio.run(run())


def test_no_event_is_none_until_the_time_limit_has_passed() -> None:
    async def run() -> None:
        job = Job(request(1)[0], 0.1)
        assert await job.next(0.01) is None
        with pytest.raises(ApiError, match=r"not ready after 0\.1 seconds") as raised:
            await job.next(20.0)
        assert (raised.value.status, raised.value.code) == (504, "timeout")

    asyncio.run(run())


def test_cancelling_reaches_every_image() -> None:
    async def run() -> list[Ticket]:
        checked, tickets = request(3)
        Job(checked, 20.0).cancel()
        return tickets

    tickets = asyncio.run(run())
    assert all(ticket.cancelled for ticket in tickets)
    # The loop has ended: an event is dropped without an error.
    tickets[0].notify(Advanced(1, 4, 3))
