"""The state that all routes share: models, stored images, settings and metrics."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from fastapi import Request

from ..allocator import fix_mmap_threshold
from ..errors import InvalidRequest
from .images.results import MemoryResults, ResultStore
from .metrics import Metrics
from .scheduling.model import load_plan, plan_name
from .scheduling.policy import make_policy
from .scheduling.worker import Worker
from .settings import ServerSettings


class Service:
    """The models of a server and its state.

    Args:
        workers: one worker for each model.
        results: stores the images of answers with URLs; None stores them in this process.

    Attributes:
        workers: the workers by the name of their model.
        draining: whether the server is shutting down.

    Raises:
        InvalidRequest: there is no model, or two models have the same name.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        settings: ServerSettings,
        metrics: Metrics,
        results: ResultStore | None = None,
    ) -> None:
        self.workers: Mapping[str, Worker] = {worker.name: worker for worker in workers}
        if len(self.workers) != len(workers) or not workers:
            names = ", ".join(worker.name for worker in workers) or "none"
            raise InvalidRequest(
                f"models must have different names, but the names are {names}: leave one out, or "
                "export it under another name"
            )
        self.settings, self.metrics = settings, metrics
        self.results: ResultStore = results or MemoryResults(
            settings.result_bytes, settings.result_seconds
        )
        self.draining = False

    def url(self, request: Request, path: str) -> str:
        """The URL of a path for the client that sent the request."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/") + path


def plan_service(
    plans: Sequence[Path],
    engine: str,
    threads: int | None,
    settings: ServerSettings,
    results: ResultStore | None = None,
) -> Service:
    """Create the service for some plans; its workers are not started.

    Fixes the allocator's threshold of the process: with growing heaps, a server on OpenVINO takes
    hundreds of megabytes more within an hour.

    Raises:
        DisaError: a file is not a plan, or two plans have the same name.
    """
    fix_mmap_threshold()
    metrics = Metrics()
    workers = []
    for path in plans:
        name = plan_name(path)
        workers.append(
            Worker(
                name,
                partial(load_plan, path, engine, threads),
                make_policy(settings.policy, settings.cohorts, settings.batch_wait),
                max_images=settings.max_images,
                max_queue=settings.max_queue,
                warm_up_seconds=settings.warm_up_seconds,
                observer=metrics.observer(name),
            )
        )
    service = Service(workers, settings, metrics, results)
    metrics.watch(service.workers)
    return service
