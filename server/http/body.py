"""Reads request bodies with limits on size and time."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from .errors import CLIENT_CLOSED_REQUEST, ApiError, bad_request


async def read_json(request: Request, most: int, seconds: float) -> dict[str, Any]:
    """Read the JSON object in a request's body.

    Args:
        most: largest size of the body in bytes.
        seconds: time limit for its arrival.

    Raises:
        ApiError: 413 if the body is too large, 408 if it is too slow, 415 if its content type is
            not JSON, and 400 if it is not a JSON object.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, "the body must be JSON: send content-type: application/json", "unsupported_type"
        )
    data = await read_bytes(request, most, seconds)
    try:
        content = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        message = f"the body is not valid JSON: {str(error)[:200]}"
        raise bad_request(message, None, "invalid_json") from None
    if not isinstance(content, Mapping):
        raise bad_request("the body must be a JSON object", None, "invalid_json")
    return dict(content)


async def read_bytes(request: Request, most: int, seconds: float) -> bytes:
    """Read the body of a request.

    Args:
        most: largest size of the body in bytes.
        seconds: time limit for its arrival.

    Raises:
        ApiError: 413 or 408, as in `read_json`; 499 if the client disconnects.
    """
    too_large = ApiError(
        413,
        f"the body is larger than {most} bytes",
        "body_too_large",
        headers={"connection": "close"},
    )
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > most:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(
            408,
            f"the body did not arrive within {seconds:g} seconds",
            "body_timeout",
            headers={"connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ApiError(CLIENT_CLOSED_REQUEST, "the client disconnected", "client_closed") from None
    return bytes(data)
