"""Server-sent events."""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from .disconnect import ClientDisconnected, until_disconnect

HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    # Without this header nginx buffers the events and forwards them at the end.
    "x-accel-buffering": "no",
}
Events = AsyncGenerator[dict[str, Any] | None, None]


class EventStream(Response):
    """Sends events as they arrive; the iterator is closed when the client disconnects.

    Args:
        events: the content of each event, with its name under `type`; None sends a keep-alive
            comment.
    """

    def __init__(self, events: Events) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        with suppress(ClientDisconnected):
            await until_disconnect(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            async for event in events:
                await send(_part(b": waiting\n\n" if event is None else event_bytes(event)))
        await send(_part(b"", more=False))


def event_bytes(content: Mapping[str, Any]) -> bytes:
    """Encode an event; its name is the content's `type`."""
    return f"event: {content['type']}\ndata: {json.dumps(content)}\n\n".encode()


def _part(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}
