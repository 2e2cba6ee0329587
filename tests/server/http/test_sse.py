"""Server-sent events."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.types import Message

from disa.server.http.sse import EventStream, event_bytes


def sent(events: AsyncGenerator[dict[str, Any] | None, None]) -> list[Message]:
    """The messages of a stream to a client that stays."""
    messages: list[Message] = []

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(asyncio.wait_for(EventStream(events)({}, receive, send), 20))
    return messages


def test_events_have_their_name_and_their_content() -> None:
    assert event_bytes({"type": "a.b", "n": 1}) == b'event: a.b\ndata: {"type": "a.b", "n": 1}\n\n'


def test_a_stream_sends_events_and_keep_alive_comments() -> None:
    async def events() -> AsyncGenerator[dict[str, Any] | None, None]:
        yield {"type": "one"}
        yield None

    start, *parts = sent(events())
    headers = dict(start["headers"])
    assert start["status"] == 200
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"x-accel-buffering"] == b"no"
    assert b"content-length" not in headers
    bodies = [part["body"] for part in parts]
    assert bodies == [event_bytes({"type": "one"}), b": waiting\n\n", b""]
    assert [part["more_body"] for part in parts] == [True, True, False]


def test_the_events_are_closed_at_once_when_the_client_disconnects() -> None:
    closed = []

    async def events() -> AsyncGenerator[dict[str, Any] | None, None]:
        try:
            yield {"type": "one"}
        finally:
            closed.append(True)

    async def run() -> None:
        sending = asyncio.Event()

        async def receive() -> Message:
            await sending.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                sending.set()
                await asyncio.Event().wait()  # The client does not read.

        await EventStream(events())({}, receive, send)
        assert closed == [True]

    asyncio.run(asyncio.wait_for(run(), 20))
