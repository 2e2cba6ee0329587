"""The thread that runs one model."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial

from ...errors import DisaError
from .model import Model, WarmUp, warm_up
from .observer import NullObserver, Observer
from .policy import Policy
from .scheduler import Scheduler
from .ticket import Failed, Ticket
from .waiting import Draining, WaitingQueue

log = logging.getLogger(__name__)

MAX_RETRY_SECONDS = 60


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Worker:
    """Loads a model, warms it up and generates submitted images, in a separate thread.

    Args:
        name: name of the model for clients.
        load: loads the model; called in the thread.
        policy, max_images: see `Scheduler`.
        max_queue: largest number of waiting images.
        warm_up_seconds: see `warm_up`.

    Attributes:
        failure: why the model cannot be loaded, or cannot be used any more; None if it can.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Model],
        policy: Policy,
        *,
        max_images: int = 64,
        max_queue: int = 256,
        warm_up_seconds: float = 30.0,
        observer: Observer | None = None,
    ) -> None:
        self.name, self.created = name, int(time.time())
        self.max_images = max_images
        self.queue = WaitingQueue(max_queue, observer)
        self.model: Model | None = None
        self.warmed: WarmUp | None = None
        self.failure: str | None = None
        self._load, self._policy = load, policy
        self._observer = observer or NullObserver()
        self._warm_up_seconds = warm_up_seconds
        self._scheduler: Scheduler | None = None
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"model {name}", daemon=True)

    @property
    def state(self) -> State:
        if self.failure is not None:
            return State.FAILED
        if self.queue.closed:
            return State.DRAINING if self._thread.is_alive() else State.STOPPED
        return State.READY if self.warmed else State.LOADING

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Number of running images."""
        return len(self._scheduler.running) if self._scheduler else 0

    @property
    def scheduler(self) -> Scheduler | None:
        """The scheduler, for reading only; None until the model is loaded."""
        return self._scheduler

    def start(self) -> None:
        """Start to load the model."""
        self._thread.start()

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of these images or none.

        Raises:
            QueueFull: they do not fit.
            Draining: the server is shutting down.
        """
        now = time.monotonic()
        for ticket in tickets:
            ticket.submitted = now
        self.queue.put(tickets)

    def retry_after(self) -> int:
        """Seconds after which the queue is likely to have room, estimated from the past rate.

        The rate is that of a busy model: a server that had nothing to do is not a slow one.
        """
        scheduler = self._scheduler
        if scheduler is None or not scheduler.stats.images:
            return 5
        a_second = scheduler.stats.images / max(scheduler.busy_seconds, 1e-3)
        return min(MAX_RETRY_SECONDS, math.ceil(len(self.queue) / 2 / a_second) or 1)

    def drain(self) -> None:
        """Refuse waiting images; finish the running ones, then end the thread."""
        for ticket in self.queue.close():
            self._observer.ended(ticket, "failed")
            ticket.notify(Failed(Draining("the server is shutting down: try again later")))

    def abandon(self) -> None:
        """Fail the running images at the next AR iteration."""
        self.drain()
        self._abandoned.set()

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; returns whether it did."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.model = self._load()
            warmed = warm_up(self.model, self.max_images, self._warm_up_seconds)
        except Exception as error:
            if not isinstance(error, DisaError):
                log.exception("%s cannot be loaded", self.name)
            self.failure = str(error) or type(error).__name__
            self.drain()
            return
        self._scheduler = Scheduler(
            self.model.family,
            self._policy,
            self.queue,
            self.max_images,
            self._observer,
            check=partial(self._check, self.model),
        )
        self.warmed = warmed
        log.info(
            "%s is ready: %s; warmed up with %s images in %.1f s",
            self.name,
            self.model.engine,
            ", ".join(map(str, warmed.images)),
            warmed.seconds,
        )
        self._serve(self._scheduler)

    def _check(self, model: Model) -> None:
        try:
            model.check()
        except DisaError as error:
            self.failure = str(error)
            raise

    def _serve(self, scheduler: Scheduler) -> None:
        while True:
            if self.failure is not None:
                scheduler.abandon(DisaError(self.failure))
                self.drain()
                return
            if self._abandoned.is_set():
                scheduler.abandon(Draining("the server is shutting down: try again later"))
            try:
                worked = scheduler.tick()
            except Exception as error:
                log.exception("a round of %s failed", self.name)
                scheduler.abandon(error)
                continue
            if not worked:
                if self.queue.closed:
                    return
                seconds = scheduler.idle_for()
                self.queue.wait(seconds, count=0 if seconds is None else len(self.queue))
