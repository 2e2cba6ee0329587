"""JSON lines and request ids."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from disa.server.http import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Receives the log; the loggers are as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("disa", "uvicorn")]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    raises, stream = logging.raiseExceptions, io.StringIO()
    logs.configure(stream)
    yield stream
    logging.raiseExceptions = raises
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def request(path: str, headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Send a request through the access log; returns the headers of the answer."""
    started: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        logs.facts(scope)["model"] = "mar_b"
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b"four"})

    async def send(message: Message) -> None:
        started.append(message)

    async def receive() -> Message:
        raise AssertionError

    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": path, "headers": headers}
    asyncio.run(logs.AccessLog(app)({**scope, "client": ("1.2.3.4", 5)}, receive, send))
    return dict(started[0]["headers"])


def test_a_request_is_one_line_with_its_facts(stream: io.StringIO) -> None:
    headers = request("/v1/models", [(b"x-request-id", b"mine-1")])
    assert headers[b"x-request-id"] == b"mine-1"
    [line] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/models", 201)
    assert (line["bytes"], line["model"], line["client"]) == (4, "mar_b", "1.2.3.4")
    assert line["request_id"] == "mine-1"


@pytest.mark.parametrize("sent", [b"", b"has spaces", b"x" * 129, b"line\nbreak"])
def test_ids_that_are_not_plain_are_replaced(sent: bytes, stream: io.StringIO) -> None:
    found = request("/v1/models", [(b"x-request-id", sent)])[b"x-request-id"]
    assert found.startswith(b"req_")


def test_health_checks_do_not_fill_the_log(stream: io.StringIO) -> None:
    request("/health/ready", [])
    assert stream.getvalue() == ""


def test_tracebacks_are_part_of_the_line(stream: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("disa.server").exception("it failed")
    [line] = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (line["level"], line["message"]) == ("error", "it failed")
    assert "ValueError: broken" in line["traceback"]
