"""Errors in the format of OpenAI's API."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...errors import DisaError, InvalidRequest, OutOfMemory
from ..scheduling.scheduler import NotFinite
from ..scheduling.waiting import Draining, QueueFull

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499
"""For the log only: a client that disconnected gets no answer."""


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        message: one sentence for people.
        code: identifier for programs.
        param: the field that is wrong.
        headers: headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.content(), self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code, param)


def as_api_error(error: Exception, retry_after: int = 5) -> ApiError:
    """Convert an exception to an answer; details of an unexpected one appear only in the log."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            headers = {"retry-after": str(retry_after)}
            return ApiError(429, str(error), "queue_full", headers=headers)
        case Draining():
            headers = {"retry-after": str(retry_after)}
            return ApiError(503, str(error), "shutting_down", headers=headers)
        case OutOfMemory() | MemoryError():
            message = "the device does not have enough memory for this image: request a smaller one"
            return ApiError(503, message, "out_of_memory")
        case NotFinite():
            message = f"{error}: lower guidance_scale or temperature"
            return ApiError(422, message, "not_finite")
        case InvalidRequest():
            return bad_request(str(error))
        case DisaError():
            log.error("an image failed: %s", error)
            return ApiError(500, f"the image could not be generated: {error}", "engine_error")
    log.error("an image failed", exc_info=error)
    return ApiError(500, "the server failed to generate the image", "internal_error")


def install(app: FastAPI) -> None:
    """Register handlers that answer every error in this format."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        where = f"{request.method} {request.url.path[:200]}"
        shown = ApiError(error.status_code, f"{where}: {error.detail}", code)
        shown.headers = dict(error.headers or {})
        return shown.response()

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()
