"""In-flight batching: steps images together that joined at different times."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import EngineError, OutOfMemory
from ...runtime.generation import Family
from ...runtime.stats import Stats
from .observer import NullObserver, Observer
from .policy import Policy
from .ticket import Advanced, Failed, Finished, Previewed, Started, Ticket
from .waiting import WaitingQueue

GROWTH_ROUNDS = 256
"""Rounds without a failure after which the batch limit is doubled again."""

Work = Callable[[Sequence[Ticket]], object]


class NotFinite(EngineError):
    """A generated image has values that are not finite."""


class Scheduler:
    """Schedules the images of one model, from the queue to the end.

    `tick` is one round: images join and leave, then all of them run one AR iteration together.
    Other threads may use the queue only.

    Args:
        family: the model.
        policy: when waiting images join.
        queue: the waiting images.
        max_images: largest number of running images.
        clock: returns seconds from any starting point.
        check: called when images start and finish; what it raises, they fail with.

    Attributes:
        together: largest number of images that share a call; less than `max_images` after memory
            ran out.
        busy_seconds: time spent in rounds with running images.
    """

    def __init__(
        self,
        family: Family[Any],
        policy: Policy,
        queue: WaitingQueue,
        max_images: int,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self.family, self.policy, self.queue, self.clock = family, policy, queue, clock
        self.check = check
        self.max_images = self.together = max_images
        self.observer = observer or NullObserver()
        self.running: list[Ticket] = []
        self.stats = Stats()
        self.busy_seconds = 0.0
        self._quiet_rounds = self._too_large = 0

    def tick(self) -> bool:
        """Run one round; returns whether there was anything to do."""
        for ticket in [ticket for ticket in self.running if ticket.cancelled]:
            self._leave(ticket, "cancelled")
        self._admit()
        if not self.running:
            return False
        begin = self.clock()
        cohorts = self._cohorts()
        self._recover_size()
        stepped = self._isolated(self._step, self.running)
        self.observer.stepped(cohorts, self.clock() - begin)
        self._show(stepped)
        self._isolated(self._finish, [t for t in stepped if t.sample and t.sample.done])
        self.busy_seconds += self.clock() - begin
        return True

    def idle_for(self) -> float | None:
        """Seconds until a round may have something to do; None: only after new images arrive."""
        submitted = self.queue.submitted()
        return self.policy.delay(self.clock() - submitted[0]) if submitted else None

    def abandon(self, error: Exception) -> None:
        """Fail all running images."""
        for ticket in list(self.running):
            self._fail(ticket, error)

    def _admit(self) -> None:
        now = self.clock()
        waited = [now - submitted for submitted in self.queue.submitted()]
        room = self.max_images - len(self.running)
        if waited and (count := self.policy.admit(waited, len(self._cohorts()), room)):
            self._isolated(self._start, self.queue.pop(count))

    def _cohorts(self) -> list[int]:
        """Sizes of the running groups that share backbone calls."""
        keys = Counter(self.family.key(ticket.running_sample) for ticket in self.running)
        return list(keys.values())

    def _start(self, tickets: Sequence[Ticket]) -> None:
        self.check()
        now = self.clock()
        samples = self.family.start([ticket.request for ticket in tickets], self.stats)
        for ticket, sample in zip(tickets, samples, strict=True):
            ticket.sample, ticket.started = sample, now
            self.running.append(ticket)
            self.observer.started(ticket, now - ticket.submitted)
            ticket.notify(Started(now - ticket.submitted))

    def _step(self, tickets: Sequence[Ticket]) -> None:
        self.family.step([ticket.running_sample for ticket in tickets], self.stats)

    def _show(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            sample = ticket.running_sample
            if ticket.progress:
                steps = sample.cost.steps[-1]
                ticket.notify(Advanced(sample.iteration, sample.iterations, steps))
        self._isolated(
            self._preview, [t for t in tickets if t.previews_after(t.running_sample.iteration)]
        )

    def _preview(self, tickets: Sequence[Ticket]) -> None:
        with self.stats.timed("preview"):
            images = self.family.preview([ticket.running_sample for ticket in tickets])
        for ticket, image in zip(tickets, images, strict=True):
            ticket.shown += 1
            if ticket.shown == 1:
                self.observer.previewed(ticket, self.clock() - ticket.submitted)
            ticket.notify(Previewed(ticket.running_sample.iteration, image))

    def _finish(self, tickets: Sequence[Ticket]) -> None:
        outputs = self.family.finish([ticket.running_sample for ticket in tickets], self.stats)
        self.check()
        now = self.clock()
        for ticket, output in zip(tickets, outputs, strict=True):
            if not output.finite:
                self._fail(ticket, NotFinite("the image has values that are not finite"))
                continue
            waited, ran = ticket.started - ticket.submitted, now - ticket.started
            cost = ticket.running_sample.cost
            self._leave(ticket, "finished")
            ticket.notify(Finished(output, cost, waited, ran))

    def _isolated(self, work: Work, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Do the work for all tickets; if that fails, repeat it for smaller and smaller parts.

        Returns:
            The tickets that succeeded. A ticket that fails alone gets the error and leaves.
        """
        if len(tickets) > self.together:
            parts = [tickets[i : i + self.together] for i in range(0, len(tickets), self.together)]
            return [done for part in parts for done in self._isolated(work, part)]
        if not tickets:
            return []
        try:
            work(tickets)
        except Exception as error:
            self._quiet_rounds = 0
            full = isinstance(error, OutOfMemory | MemoryError)
            if len(tickets) == 1:
                self._too_large += full
                self._fail(tickets[0], error)
                return []
            half = len(tickets) // 2
            together, too_large = self.together, self._too_large
            if full:
                self.together = min(self.together, half)
                self.observer.halved(self.together)
            parts = [tickets[:half], tickets[half:]]
            succeeded = [done for part in parts for done in self._isolated(work, part)]
            if self._too_large > too_large:
                # The cause was an image that does not fit alone, not the number of images.
                self.together = together
            return succeeded
        return list(tickets)

    def _recover_size(self) -> None:
        self._quiet_rounds += 1
        if self.together < self.max_images and self._quiet_rounds > GROWTH_ROUNDS:
            self.together, self._quiet_rounds = min(2 * self.together, self.max_images), 0

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self._leave(ticket, "failed")
        ticket.notify(Failed(error))

    def _leave(self, ticket: Ticket, outcome: str) -> None:
        if ticket in self.running:
            self.running.remove(ticket)
        # Its arrays are those of a whole cohort, and the request keeps the ticket to its end.
        ticket.sample = None
        self.observer.ended(ticket, outcome)
