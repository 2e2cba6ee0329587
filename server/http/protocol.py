"""HTTP connections with time limits, so that no client can hold one open without reason."""

import asyncio
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import ApiError, bad_request

TOO_MANY = ApiError(
    503,
    "the server has too many connections: try again later",
    "too_many_connections",
    headers={"retry-after": "5", "connection": "close"},
)


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with additional time limits.

    A client must send the complete head of its first request within `header_seconds` after it
    connected, and that of a later request within that time after its first byte; the same is true
    of the rest of a body when the request is answered already. While data waits for a client, it
    must read `write_bytes` or all of them in `write_seconds`; otherwise it is disconnected and its
    images are dropped. The event loop is never blocked.

    Beyond uvicorn's `limit_concurrency` requests are refused like those of a full queue: uvicorn
    itself would answer in plain text.
    """

    header_seconds = 20.0
    write_seconds = 60.0
    write_bytes = 1 << 20

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._application, self.app = self.app, self._answer
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        # Even the last bytes of an answer must be read in time.
        self.transport.set_write_buffer_limits(high=0)
        self._watch_reading()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._watch_reading()
        elif not self._answered_early:
            self._header_timer = _stop(self._header_timer)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._answered_early:
            # uvicorn has no time limit for the connection once more of the body arrives.
            self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._write_timer = _stop(self._write_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer = _stop(self._header_timer)
        self._write_timer = _stop(self._write_timer)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP; uvicorn itself would answer in plain text."""
        message = f"the request is not valid HTTP: {msg.rstrip('.')}"
        answer = bad_request(message, None, "invalid_http").response()
        headers = [*answer.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=answer.status_code, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(answer.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _answered_early(self) -> bool:
        """Whether the request was answered before all of its body has arrived."""
        return self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        application: Any = self._application
        # The tasks include this one.
        if self._most and (len(self.connections) >= self._most or len(self.tasks) > self._most):
            self.logger.warning("there are %d connections: refused", len(self.connections))
            application = TOO_MANY.response()
        await application(scope, receive, send)

    def _watch_reading(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._drop)

    def _watch_writing(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.write_seconds, self._check_writing, waiting)

    def _check_writing(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < self.write_bytes:
            self._drop()
        else:
            self._watch_writing()

    def _drop(self) -> None:
        self.transport.abort()


def _stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
