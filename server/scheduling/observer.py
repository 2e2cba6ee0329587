"""Events of a scheduler for metrics."""

from collections.abc import Sequence
from typing import Protocol

from .ticket import Ticket


class Observer(Protocol):
    """Receives events; called in the scheduler's thread, so it must not raise.

    `ended` is also called in the thread that closes the queue, for the images that were waiting.
    """

    def started(self, ticket: Ticket, waited: float) -> None:
        """An image left the queue after `waited` seconds."""

    def stepped(self, groups: Sequence[int], seconds: float) -> None:
        """An AR iteration is done; `groups` are the batch sizes of the backbone calls."""

    def previewed(self, ticket: Ticket, seconds: float) -> None:
        """The first preview of an image is ready, `seconds` after the image was submitted."""

    def ended(self, ticket: Ticket, outcome: str) -> None:
        """An image ended with "finished", "failed" or "cancelled"."""

    def halved(self, together: int) -> None:
        """Memory ran out: from now on at most `together` images share a step."""


class NullObserver:
    """Ignores all events."""

    def started(self, ticket: Ticket, waited: float) -> None:
        pass

    def stepped(self, groups: Sequence[int], seconds: float) -> None:
        pass

    def previewed(self, ticket: Ticket, seconds: float) -> None:
        pass

    def ended(self, ticket: Ticket, outcome: str) -> None:
        pass

    def halved(self, together: int) -> None:
        pass
