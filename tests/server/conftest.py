"""A server on a fake model, in this process."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn

from disa.server.metrics import Metrics
from disa.server.run import DrainingServer, configure, listen
from disa.server.scheduling.model import Model
from disa.server.scheduling.policy import JoinAtOnce
from disa.server.scheduling.worker import State, Worker
from disa.server.service import Service
from disa.server.settings import ServerSettings

from .fake_family import FakeFamily, fake_model

PATIENCE = 20.0


@dataclass
class RunningServer:
    """A server that listens, and the fake models behind it."""

    service: Service
    families: dict[str, FakeFamily]
    url: str
    server: uvicorn.Server

    @property
    def family(self) -> FakeFamily:
        return next(iter(self.families.values()))

    @property
    def worker(self) -> Worker:
        return next(iter(self.service.workers.values()))


def until(true: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until something is true; fails if it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def make_service(
    families: dict[str, FakeFamily], settings: ServerSettings | None = None
) -> Service:
    """A service on fake models; its workers are not started."""
    settings = settings or ServerSettings(port=0)
    metrics = Metrics()

    def load(family: FakeFamily) -> Callable[[], Model]:
        return lambda: fake_model(family)

    workers = [
        Worker(
            name,
            load(family),
            JoinAtOnce(),
            max_images=settings.max_images,
            max_queue=settings.max_queue,
            warm_up_seconds=0,
            observer=metrics.observer(name),
        )
        for name, family in families.items()
    ]
    service = Service(workers, settings, metrics)
    metrics.watch(service.workers)
    return service


@contextmanager
def running_server(
    families: dict[str, FakeFamily] | None = None,
    settings: ServerSettings | None = None,
) -> Iterator[RunningServer]:
    """A server on fake models, in a thread."""
    families = families or {"fake": FakeFamily()}
    with serving(make_service(families, settings), families) as running:
        yield running


@contextmanager
def serving(service: Service, families: dict[str, FakeFamily]) -> Iterator[RunningServer]:
    """A server in a thread, its workers started and ready."""
    listening = listen(service.settings)
    server = DrainingServer(configure(service), service)
    thread = threading.Thread(
        target=lambda: asyncio.run(server.serve([listening])), name="server", daemon=True
    )
    for worker in service.workers.values():
        worker.start()
    until(lambda: all(w.state is not State.LOADING for w in service.workers.values()), 6 * PATIENCE)
    assert not any(worker.failure for worker in service.workers.values())
    thread.start()
    until(lambda: server.started)
    host, port = listening.getsockname()[:2]
    try:
        yield RunningServer(service, families, f"http://{host}:{port}", server)
    finally:
        service.draining = True
        for worker in service.workers.values():
            worker.abandon()
        server.should_exit = server.force_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive(), "the server did not stop"


@pytest.fixture
def served() -> Iterator[RunningServer]:
    """A server on one fake model."""
    with running_server() as running:
        yield running


@pytest.fixture
def client(served: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=PATIENCE) as client:
        yield client
