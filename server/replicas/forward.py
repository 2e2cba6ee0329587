"""Forwards requests to replicas; if a replica dies, another one gets its requests."""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import aclosing, suppress
from typing import Any

from fastapi import Request
from pydantic_core import from_json
from starlette.types import Message, Receive, Scope, Send

from ..http.body import read_bytes
from ..http.disconnect import ClientDisconnected, until_disconnect
from ..http.errors import ApiError
from ..http.sse import event_bytes
from ..images.validation import MAX_RANDOM_SEED
from ..openapi import GENERATIONS

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Replicas that may die with a request before it fails: the request may be the cause."""
RETRY_SECONDS = "5"
SCOPE = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
"""The entries of an ASGI scope that are sent to a replica: all of them are plain data."""

CallReplica = Callable[[Scope, bytes], AsyncGenerator[Message, None]]
"""Sends the scope and the body of a request to a replica; yields the messages of its response."""


class ReplicaLost(Exception):
    """The replica died before it had answered the request."""


class Forward:
    """An ASGI application that forwards each request to a replica.

    Args:
        call_replica: raises `ReplicaLost` if the replica dies. Closing the generator cancels the
            request in the replica.
        most_body, body_seconds: see `read_bytes`.
        seconds: time in which a response must begin.
    """

    def __init__(
        self, call_replica: CallReplica, most_body: int, body_seconds: float, seconds: float
    ) -> None:
        self._call_replica, self._seconds = call_replica, seconds
        self._most_body, self._body_seconds = most_body, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_bytes(Request(scope, receive), self._most_body, self._body_seconds)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        sent_scope = {name: scope[name] for name in SCOPE if name in scope}
        if (scope["method"], scope["path"]) == ("POST", GENERATIONS):
            body = with_seed(body)
        answer = Answer(send)
        with suppress(ClientDisconnected):
            await until_disconnect(receive, self._deliver(sent_scope, body, answer))

    async def _deliver(self, scope: Scope, body: bytes, answer: "Answer") -> None:
        for _ in range(ATTEMPTS):
            try:
                await self._attempt(scope, body, answer)
                return
            except ReplicaLost:
                if answer.complete:
                    return
                if answer.cut:
                    raise  # This closes the connection, so that no part arrives twice.
                log.warning("a replica died before it had answered a request: trying another one")
            except TimeoutError:
                message = f"the answer did not begin within {self._seconds:g} seconds"
                await answer.fail(ApiError(504, message, "timeout"))
                return
        await answer.fail(
            ApiError(
                503,
                f"{ATTEMPTS} replicas died while they answered this request: try again later",
                "replica_lost",
                headers={"retry-after": RETRY_SECONDS},
            )
        )

    async def _attempt(self, scope: Scope, body: bytes, answer: "Answer") -> None:
        """Let one replica answer.

        Raises:
            TimeoutError: the response does not begin in time.
            ReplicaLost: the replica died.
        """
        async with (
            aclosing(self._call_replica(scope, body)) as messages,
            asyncio.timeout(self._seconds) as limit,
        ):
            async for message in messages:
                limit.reschedule(None)
                await answer.forward(message)


class Answer:
    """The response to a client, which may come from several replicas one after another.

    The status is sent together with the first part of the body, so that an attempt that fails
    earlier can be repeated without the client noticing. If a stream of events begins again, the
    events that were sent already are left out: the images are the same because the seed is.

    Attributes:
        complete: whether the whole response was sent; if the replica dies then, nothing is lost.
        cut: whether a part of a body that is not a stream of events was sent, so that no other
            replica can continue it.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._begun: Message | None = None
        self.complete = False
        self.cut = False
        self._sent: set[Hashable] = set()

    async def forward(self, message: Message) -> None:
        """Send a message of a replica to the client, or hold it back."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        assert self._start is not None
        body = message.get("body", b"")
        if self._begun not in (None, self._start) and self._start["status"] >= 400:
            # The replica refuses to continue a stream: its error becomes the last event.
            body = event_bytes({"type": "error", **from_json(body)})
            message = {**message, "body": body}
        key = event_key(body)
        if key is not None and key in self._sent:
            return
        if self._begun is None:
            self._begun = self._start
            await self._send(self._start)
        if key is not None:
            self._sent.add(key)
        await self._send(message)
        self.complete = not message.get("more_body", False)
        self.cut |= not body.startswith((b"event: ", b":")) and bool(body)

    async def fail(self, error: ApiError) -> None:
        """End the response with an error."""
        if self._begun is not None:
            last = event_bytes({"type": "error", **error.content()})
            await self._send({"type": "http.response.body", "body": last, "more_body": False})
            return
        response = error.response()
        await self._send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": response.raw_headers,
            }
        )
        await self._send({"type": "http.response.body", "body": response.body})


def with_seed(body: bytes) -> bytes:
    """Add a random seed to the body of a request for images, so that a second attempt generates
    the same images.

    A body that has a seed, or is not a valid request, is returned unchanged; the replica answers
    an invalid one with an error.
    """
    try:
        content = from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError):
        return body
    if not isinstance(content, dict) or content.get("seed") is not None:
        return body
    return json.dumps({**content, "seed": secrets.randbelow(MAX_RANDOM_SEED)}).encode()


def event_key(part: bytes) -> Hashable | None:
    """A key that identifies an event of an image; None for any other part of a body."""
    if not part.startswith(b"event: image_generation."):
        return None
    content: dict[str, Any] = from_json(part.partition(b"data: ")[2])
    return tuple(
        content.get(name) for name in ("type", "image", "iteration", "partial_image_index")
    )
