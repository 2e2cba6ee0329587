"""The bounded queue before the model."""

import threading
from collections import deque
from collections.abc import Sequence

from ...errors import DisaError
from .observer import NullObserver, Observer
from .ticket import Ticket


class QueueFull(DisaError):
    """The queue has no room for more images."""


class Draining(DisaError):
    """The server finishes its running images and accepts no new ones."""


class WaitingQueue:
    """Tickets in order of arrival; filled by one thread and emptied by another.

    Args:
        limit: largest number of tickets.
        observer: told of tickets that are cancelled while they wait.
    """

    def __init__(self, limit: int, observer: Observer | None = None) -> None:
        self.limit = limit
        self._observer = observer or NullObserver()
        self._tickets: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, tickets: Sequence[Ticket]) -> None:
        """Queue all of these tickets or none.

        Raises:
            QueueFull: they do not fit.
            Draining: the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise Draining("the server is shutting down: try again later")
            if len(self._tickets) + len(tickets) > self.limit:
                raise QueueFull(
                    f"{len(self._tickets)} images are waiting, and the server accepts at most "
                    f"{self.limit}: try again later"
                )
            self._tickets.extend(tickets)
            self._changed.notify()

    def pop(self, count: int) -> list[Ticket]:
        """Remove and return the first `count` tickets, or fewer if there are not so many."""
        with self._changed:
            return [self._tickets.popleft() for _ in range(min(count, len(self._tickets)))]

    def submitted(self) -> list[float]:
        """When each ticket was queued, in order; cancelled tickets are removed first."""
        with self._changed:
            self._remove_cancelled()
            return [ticket.submitted for ticket in self._tickets]

    def close(self) -> list[Ticket]:
        """Accept no more tickets; returns those that were waiting."""
        with self._changed:
            self._closed = True
            self._remove_cancelled()
            dropped = list(self._tickets)
            self._tickets.clear()
            self._changed.notify()
            return dropped

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return len(self._tickets)

    def wait(self, seconds: float | None, count: int = 0) -> None:
        """Block until more than `count` tickets wait, the queue is closed, or time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._tickets) > count, seconds)

    def _remove_cancelled(self) -> None:
        if not any(ticket.cancelled for ticket in self._tickets):
            return
        waiting: deque[Ticket] = deque()
        for ticket in self._tickets:
            if ticket.cancelled:
                self._observer.ended(ticket, "cancelled")
            else:
                waiting.append(ticket)
        self._tickets = waiting
