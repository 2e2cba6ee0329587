"""Metrics in Prometheus' format."""

from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from .. import __version__
from .scheduling.ticket import Ticket
from .scheduling.worker import State, Worker

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms; `text` is the scraped output."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "disa_requests",
            "Requests by model and status.",
            ("model", "status"),
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "disa_request_seconds",
            "From request to answer.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "disa_images", "Images by outcome.", ("model", "outcome"), registry=self.registry
        )
        self.queue_seconds = Histogram(
            "disa_queue_seconds",
            "An image in the queue.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_partial = Histogram(
            "disa_first_partial_image_seconds",
            "From the queue to an image's first preview.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.iteration_seconds = Histogram(
            "disa_iteration_seconds",
            "One AR iteration of all running images.",
            ("model",),
            buckets=(0.001, 0.003, *SECONDS),
            registry=self.registry,
        )
        self.backbone_rows = Histogram(
            "disa_backbone_batch_images",
            "Images that shared a backbone call.",
            ("model",),
            buckets=ROWS,
            registry=self.registry,
        )
        self.together = Histogram(
            "disa_iteration_images",
            "Images that shared an AR iteration, and so also head calls.",
            ("model",),
            buckets=ROWS,
            registry=self.registry,
        )
        self.out_of_memory = Counter(
            "disa_out_of_memory",
            "Times that a batch was halved.",
            ("model",),
            registry=self.registry,
        )

    def watch(self, workers: Mapping[str, Worker]) -> None:
        """Report the state of these workers too."""
        self.registry.register(WorkerCollector(workers))

    def observer(self, model: str) -> "ModelObserver":
        """An observer that counts the scheduler events of a model."""
        return ModelObserver(self, model)

    def answered(self, model: str | None, status: int, seconds: float) -> None:
        """Count a request for images; `model` is None if the request named no existing model."""
        name = model or ""
        self.requests.labels(name, str(status)).inc()
        self.request_seconds.labels(name).observe(seconds)

    def text(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)


class ModelObserver:
    """Implements `scheduling.observer.Observer`."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._images = {
            outcome: metrics.images.labels(model, outcome)
            for outcome in ("finished", "failed", "cancelled")
        }
        self._queue_seconds = metrics.queue_seconds.labels(model)
        self._first_partial = metrics.first_partial.labels(model)
        self._iteration_seconds = metrics.iteration_seconds.labels(model)
        self._backbone_rows = metrics.backbone_rows.labels(model)
        self._together = metrics.together.labels(model)
        self._out_of_memory = metrics.out_of_memory.labels(model)

    def started(self, ticket: Ticket, waited: float) -> None:
        self._queue_seconds.observe(waited)

    def stepped(self, groups: Sequence[int], seconds: float) -> None:
        self._iteration_seconds.observe(seconds)
        self._together.observe(sum(groups))
        for size in groups:
            self._backbone_rows.observe(size)

    def previewed(self, ticket: Ticket, seconds: float) -> None:
        self._first_partial.observe(seconds)

    def ended(self, ticket: Ticket, outcome: str) -> None:
        self._images[outcome].inc()

    def halved(self, together: int) -> None:
        self._out_of_memory.inc()


class WorkerCollector:
    """Reads the state of the workers at each scrape."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily("disa_queue_images", "Waiting images.", labels=["model"])
        running = GaugeMetricFamily("disa_running_images", "Running images.", labels=["model"])
        ready = GaugeMetricFamily(
            "disa_ready", "Whether the model accepts requests.", labels=["model"]
        )
        calls = CounterMetricFamily("disa_head_calls", "Calls of the head.", labels=["model"])
        rows = CounterMetricFamily("disa_head_rows", "Rows of the head calls.", labels=["model"])
        stages = CounterMetricFamily(
            "disa_stage_seconds", "Seconds in each stage.", labels=["model", "stage"]
        )
        info = InfoMetricFamily("disa_model", "Engine, precision and family.", labels=["model"])
        for name, worker in self._workers.items():
            waiting.add_metric([name], len(worker.queue))
            running.add_metric([name], worker.running)
            ready.add_metric([name], worker.state is State.READY)
            if worker.scheduler and worker.model:
                stats = worker.scheduler.stats
                calls.add_metric([name], stats.head_calls)
                rows.add_metric([name], stats.head_rows)
                for stage, seconds in list(stats.seconds.items()):
                    stages.add_metric([name, stage], seconds)
                facts = {
                    "engine": worker.model.engine,
                    "precision": worker.model.precision,
                    "family": worker.model.family_name,
                    "version": __version__,
                }
                info.add_metric([name], facts)
        return [waiting, running, ready, calls, rows, stages, info]
