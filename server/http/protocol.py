"""HTTP connections with time limits, so that no client can hold one open without reason."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP protocol with additional time limits.

    A client must send the complete head of its first request within `header_seconds` after it
    connected, and that of a later request within that time after its first byte. A client that
    reads less than `write_bytes` in `write_seconds` while data waits for it is disconnected; its
    images are dropped and the event loop is never blocked.
    """

    header_seconds = 20.0
    write_seconds = 60.0
    write_bytes = 1 << 20

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._header_timer = self.loop.call_later(self.header_seconds, self._drop)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._header_timer = _stop(self._header_timer)
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._drop)

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
