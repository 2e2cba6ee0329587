"""A server in a process of Ray Serve, without sockets."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.types import Message, Scope

from ...errors import DisaError
from ..app import create_app
from ..health import model_state
from ..http import logs
from ..http.auth import read_keys
from ..scheduling.worker import State
from ..service import Service, plan_service
from ..settings import ServerSettings
from .results import RemoteResults

POLL_SECONDS = 0.05


class Replica:
    """A deployment whose replicas load all plans, each on one GPU or a share of the cores.

    The constructor returns when all plans are warmed up; then Ray Serve sends requests.

    Args:
        plans: paths of the plans, valid on every machine.
        engine: engine of the graphs.
        threads: CPU threads; None for all cores.
        key_file: see `read_keys`; read here, so that no key is stored in Ray.
        results: Ray Serve's handle of a deployment of `SharedResults`.

    Raises:
        DisaError: a plan is damaged, or an engine cannot run it here.
    """

    def __init__(
        self,
        plans: Sequence[str],
        engine: str,
        threads: int | None,
        settings: ServerSettings,
        key_file: str | None,
        results: Any,
    ) -> None:
        logs.configure()
        if key_file is not None:
            settings = replace(settings, api_keys=read_keys(Path(key_file)))
        self._service: Service = plan_service(
            [Path(plan) for plan in plans], engine, threads, settings, RemoteResults(results)
        )
        self._app = create_app(self._service)
        workers = self._service.workers.values()
        for worker in workers:
            worker.start()
        while any(worker.state is State.LOADING for worker in workers):
            time.sleep(POLL_SECONDS)
        for worker in workers:
            if worker.failure:
                raise DisaError(f"{worker.name}: {worker.failure}")

    async def answer(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        """Answer a request; yields the ASGI messages of the response.

        Closing the generator cancels the request and its images.

        Args:
            scope: ASGI scope of the request.
            body: the whole body of the request.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for part in parts:
                return part
            # If the client disconnects, this generator is closed, which cancels the application.
            await asyncio.Event().wait()
            raise AssertionError

        running = asyncio.ensure_future(self._app(dict(scope), receive, messages.put))
        running.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            running.cancel()
            # The application has already logged and answered its exceptions.
            await asyncio.gather(running, return_exceptions=True)

    async def state(self) -> dict[str, Any]:
        """The state of this replica, for `/health/ready`."""
        models = {name: model_state(self._service, name) for name in self._service.workers}
        return {"host": socket.gethostname(), "process": os.getpid(), "models": models}

    async def metrics(self) -> tuple[str, bytes]:
        """The name of this replica (host:process), and its metrics in Prometheus' text format."""
        return f"{socket.gethostname()}:{os.getpid()}", self._service.metrics.text()

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces the replica if this raises.

        Raises:
            DisaError: the thread of a model has ended.
        """
        for worker in self._service.workers.values():
            if not worker.alive:
                raise DisaError(f"the thread of {worker.name} has ended")
