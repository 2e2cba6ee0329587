"""The deployment between Ray Serve's proxies and the replicas."""

from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.types import Message, Receive, Scope, Send

from ..http import logs
from ..settings import ServerSettings
from .forward import RETRY_SECONDS, Forward, ReplicaLost
from .metrics import joined_metrics

ASK_ALL_SECONDS = 5.0
LONGER_SECONDS = 10.0
"""Added to `request_timeout`, which the replica enforces: its answer needs time to arrive."""


class Front:
    """A deployment that forwards requests to the replicas; it needs no GPU and little CPU time.

    It answers requests for health and metrics for all replicas together.

    Args:
        replicas: Ray Serve's handle of a deployment of `Replica`.
    """

    def __init__(self, replicas: Any, settings: ServerSettings) -> None:
        logs.configure()
        self._replicas = replicas
        self._answer = replicas.answer.options(stream=True)
        self._forward = Forward(
            self._call_replica,
            settings.max_body,
            settings.body_seconds,
            settings.request_timeout + LONGER_SECONDS,
        )

    async def __call__(self, request: Request) -> Response:
        match request.url.path:
            case "/health/live":
                return JSONResponse({"status": "alive"})
            case "/health" | "/health/ready":
                return await self._ready()
            case "/metrics":
                pages = dict(await self._all("metrics"))
                return Response(joined_metrics(pages), media_type="text/plain; version=0.0.4")
        return _Forwarded(self._forward)

    async def _ready(self) -> Response:
        replicas = await self._all("state")
        state = "ready" if replicas else "loading"
        return JSONResponse(
            {"status": state, "replicas": replicas},
            200 if replicas else 503,
            headers={} if replicas else {"retry-after": RETRY_SECONDS},
        )

    async def _all(self, method: str) -> list[Any]:
        """Call a method of all replicas; returns the results of those that answer in time."""
        try:
            answers = await self._replicas.broadcast(method).results_async(
                timeout_s=ASK_ALL_SECONDS, return_exceptions=True
            )
        except (TimeoutError, DeploymentUnavailableError):
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def _call_replica(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """See `forward.CallReplica`."""
        answer = self._answer.remote(scope, body)
        done = False
        try:
            async for message in answer:
                yield message
            done = True
        except (RayActorError, DeploymentUnavailableError) as error:
            done = True
            raise ReplicaLost from error
        finally:
            if not done:
                answer.cancel()


class _Forwarded(Response):
    """A response that forwards the request when Ray Serve sends it."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self._forward = forward

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._forward(scope, receive, send)
