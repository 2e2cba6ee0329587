"""The web application: routes, middleware and the page."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from . import health
from .http import errors
from .http.auth import key_check
from .http.logs import REQUEST_ID, AccessLog, facts
from .images import routes
from .metrics import Metrics
from .openapi import GENERATIONS, describe_api
from .service import Service

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {
    "app.js": "text/javascript",
    "chart.js": "text/javascript",
    "events.js": "text/javascript",
    "options.js": "text/javascript",
    "style.css": "text/css",
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def create_app(service: Service) -> FastAPI:
    """Create the application of the server; the caller starts the workers of the service."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        expiry = asyncio.create_task(service.results.expire())
        yield
        expiry.cancel()

    app = FastAPI(
        title="disa",
        version=__version__,
        description="Image generation with MAR, FlowAR, xAR and Harmon, as in OpenAI's images API.",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    errors.install(app)
    app.openapi = partial(describe_api, app, service)  # type: ignore[method-assign]
    app.include_router(routes.make_router(service, key_check(service.settings.api_keys)))
    app.include_router(health.make_router(service))
    _add_page(app)
    if service.settings.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", REQUEST_ID],
            expose_headers=[REQUEST_ID, "retry-after"],
        )
    app.add_middleware(CountRequests, metrics=service.metrics)
    app.add_middleware(AccessLog)
    return app


class CountRequests:
    """Counts requests for images by status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != GENERATIONS or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 500

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note_status)
        finally:
            model = facts(scope).get("model")
            self.metrics.answered(model, status, time.monotonic() - begin)


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", media_type="text/html", headers=PAGE_HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> FileResponse:
        if name not in PAGE_FILES:
            raise errors.ApiError(404, f"there is no file {name[:60]!r} of the page", "not_found")
        return FileResponse(PAGE / name, media_type=PAGE_FILES[name], headers=PAGE_HEADERS)
