"""Runs the server: listens, watches the workers, and shuts down in order."""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from ..errors import DisaError
from .app import create_app
from .http import logs
from .http.protocol import GuardedProtocol
from .scheduling.worker import State, Worker
from .service import Service, plan_service
from .settings import ServerSettings

log = logging.getLogger("disa.server")

BACKLOG = 2048
CLOSING_SECONDS = 5
KEEP_ALIVE_SECONDS = 75
"""How long an unused connection stays open: longer than clients (5 s) and nginx (60 s) reuse one,
since a request that is sent while the server closes its connection fails."""
POLL_SECONDS = 0.05


def serve_plans(
    plans: Sequence[Path], engine: str, threads: int | None, settings: ServerSettings
) -> None:
    """Serve plans until a signal stops the server.

    Args:
        engine: engine of the graphs.
        threads: CPU threads; None for all cores.

    Raises:
        DisaError: a plan is damaged, an engine cannot run it here, or the address is in use.
    """
    logs.configure()
    serve(plan_service(plans, engine, threads, settings))


def serve(service: Service) -> None:
    """Start the workers and answer requests until a signal stops the server.

    Raises:
        DisaError: a model cannot be loaded, or the address is in use.
    """
    listening = listen(service.settings)
    for worker in service.workers.values():
        worker.start()
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"disa-serve: http://{shown}:{port}/", flush=True)
    server = DrainingServer(configure(service), service)
    server.run(sockets=[listening])
    if server.failure:
        raise DisaError(server.failure)
    if any(worker.alive for worker in service.workers.values()):
        # A thread that is inside an engine can crash a process that ends normally.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def configure(service: Service) -> uvicorn.Config:
    """The web server's configuration: the application, and its limits on connections."""
    return uvicorn.Config(
        create_app(service),
        http=GuardedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        limit_concurrency=service.settings.max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        server_header=False,
    )


def listen(settings: ServerSettings) -> socket.socket:
    """Open a listening socket at the address of the settings.

    Raises:
        DisaError: the address is not valid or is in use.
    """
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise DisaError(
            f"{settings.host} port {settings.port} cannot be used: {error.strerror or error}: "
            "choose another with --host and --port"
        ) from error
    return listening


class DrainingServer(uvicorn.Server):
    """Finishes the running images after the first signal, and stops at once after the second.

    Attributes:
        failure: why a model cannot be loaded or used any more, which stops the server; None if none
            failed.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._drain_task: asyncio.Task[None] | None = None
        self.failure: str | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by Python's signal handling, in the main thread."""
        if self._service.draining:
            log.warning("stopped by a second signal")
            sys.stderr.flush()
            os._exit(128 + sig)
        self._service.draining = True
        log.info("%s: finishing the running images", signal.Signals(sig).name)

    async def main_loop(self) -> None:
        """Run uvicorn's loop, and watch the workers meanwhile."""
        watching = asyncio.create_task(self._watch())
        try:
            await super().main_loop()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        workers = list(self._service.workers.values())
        while not self._service.draining:
            if broken := [worker for worker in workers if worker.state is State.FAILED]:
                self.failure = f"{broken[0].name}: {broken[0].failure}"
                break
            await asyncio.sleep(POLL_SECONDS)
        self._service.draining = True
        for worker in workers:
            worker.drain()
        # A model that is still being loaded has no images, and loading cannot be interrupted.
        loaded = [worker for worker in workers if worker.scheduler is not None]
        await self._wait_for(loaded, self._service.settings.drain_timeout)
        for worker in workers:
            worker.abandon()
        await self._wait_for(loaded, 1.0)
        self.should_exit = True

    async def _wait_for(self, workers: Sequence[Worker], seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while any(worker.alive for worker in workers) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(POLL_SECONDS)
