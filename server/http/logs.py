"""Logs as one JSON object a line, and request ids."""

import json
import logging
import re
import secrets
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"
USABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
QUIET = ("/health", "/metrics")
"""Paths whose requests are logged at debug level only."""
FACTS = "disa.facts"
"""Key in an ASGI scope under which a route stores facts for the access log."""

access = logging.getLogger("disa.server.access")
current_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class JsonLines(logging.Formatter):
    """Formats a log record as one JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request_id := current_id.get()) is not None:
            line["request_id"] = request_id
        line.update(getattr(record, "facts", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(stream: TextIO = sys.stderr) -> None:
    """Write the logs of disa and uvicorn as JSON lines.

    Lines that cannot be written, for example because the disk is full, are dropped without an
    error.
    """
    logging.raiseExceptions = False
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("disa", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    # We write our own access log; uvicorn's messages about start and stop add nothing to ours.
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).handlers = []
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def facts(scope: Scope) -> dict[str, Any]:
    """The dict of facts about a request that the access log includes."""
    found: dict[str, Any] = scope.setdefault(FACTS, {})
    return found


class AccessLog:
    """Gives each request an id, which the client gets too, and logs a line at its end.

    An id that the client sends is used if it is short and plain.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent_id = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = sent_id if USABLE_ID.fullmatch(sent_id) else f"req_{secrets.token_hex(12)}"
        token = current_id.set(request_id)
        begin, status, size = time.monotonic(), 0, 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            client = scope.get("client")
            # Health probes come every few seconds and would fill the log.
            level = logging.DEBUG if scope["path"].startswith(QUIET) else logging.INFO
            access.log(
                level,
                "%s %s",
                scope["method"],
                scope["path"],
                extra={
                    "facts": {
                        "method": scope["method"],
                        "path": scope["path"],
                        "status": status,
                        "bytes": size,
                        "seconds": round(time.monotonic() - begin, 4),
                        "client": client[0] if client else None,
                        **facts(scope),
                    }
                },
            )
            current_id.reset(token)
