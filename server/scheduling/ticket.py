"""One requested image and its events."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...runtime.generation import Cost, Image, Output, Request, Sample


@dataclass(frozen=True)
class Started:
    """The image joined the running ones.

    Attributes:
        waited: seconds it spent in the queue.
    """

    waited: float


@dataclass(frozen=True)
class Advanced:
    """An AR iteration is done.

    Attributes:
        iteration: AR iterations done so far.
        iterations: AR iterations in all.
        steps: denoising steps that this one took.
    """

    iteration: int
    iterations: int
    steps: int


@dataclass(frozen=True)
class Previewed:
    """A preview of the image is ready."""

    iteration: int
    image: Image


@dataclass(frozen=True)
class Finished:
    """The image is finished.

    Attributes:
        waited: seconds it spent in the queue.
        ran: seconds since it left the queue.
    """

    output: Output
    cost: Cost
    waited: float
    ran: float


@dataclass(frozen=True)
class Failed:
    """The image could not be generated."""

    error: Exception


Event = Started | Advanced | Previewed | Finished | Failed


@dataclass(eq=False)
class Ticket:
    """One requested image.

    Attributes:
        request: what to generate.
        notify: called with each event, in the scheduler's thread; it must not block or raise.
            `Finished` or `Failed` is the last event; exactly one of them comes unless the
            ticket is cancelled.
        previews: number of previews to make.
        progress: whether to report `Advanced` after each AR iteration.
        submitted: time when it was queued, by the scheduler's clock.
        started: time when it left the queue.
        sample: the running sample; None before it starts and after it ends.
        shown: number of previews made so far.
    """

    request: Request
    notify: Callable[[Event], None]
    previews: int = 0
    progress: bool = False
    submitted: float = 0.0
    started: float = 0.0
    sample: Sample | None = None
    shown: int = 0
    _cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def cancel(self) -> None:
        """Drop the image before the next AR iteration."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def running_sample(self) -> Any:
        """The sample of a ticket that was started."""
        assert self.sample is not None
        return self.sample

    def previews_after(self, iteration: int) -> bool:
        """Whether a preview is due after that AR iteration."""
        return iteration in preview_iterations(self.previews, self.running_sample.iterations)


def preview_iterations(previews: int, iterations: int) -> list[int]:
    """AR iterations after which previews are made: evenly spaced, none after the last."""
    evenly = (round(i * iterations / (previews + 1)) for i in range(1, previews + 1))
    return sorted({iteration for iteration in evenly if 0 < iteration < iterations})
