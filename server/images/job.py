"""The images of one request and their events, on the event loop."""

import asyncio
import contextlib
from functools import partial

from ..http.errors import ApiError
from ..scheduling.ticket import Event, Failed, Finished, Ticket
from .validation import ValidatedRequest


class Job:
    """Submits the images of a request and receives their events.

    Created on the event loop. The model's thread only adds events to a queue; it never waits for
    a reader.

    Args:
        seconds: time limit of the request.

    Attributes:
        request: the request.
        tickets: one ticket for each image.
        left: number of images that have neither finished nor failed.

    Raises:
        QueueFull, Draining: see `Worker.submit`.
    """

    def __init__(self, request: ValidatedRequest, seconds: float) -> None:
        self.request, self.left = request, len(request.images)
        self._loop = asyncio.get_running_loop()
        self._seconds, self._deadline = seconds, self._loop.time() + seconds
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self.tickets = [
            Ticket(
                image.request,
                partial(self._add_event, number),
                previews=request.partial_images,
                progress=request.progress,
            )
            for number, image in enumerate(request.images)
        ]
        request.worker.submit(self.tickets)

    async def next(self, seconds: float) -> tuple[int, Event] | None:
        """Wait for the next event.

        Args:
            seconds: longest time to wait.

        Returns:
            The number of the image and its event; None if there was no event in this time.

        Raises:
            ApiError: 504, the time limit of the request has passed.
        """
        left = self._deadline - self._loop.time()
        try:
            async with asyncio.timeout(min(seconds, left)):
                number, event = await self._events.get()
        except TimeoutError:
            if seconds < left:
                return None
            message = f"the images were not ready after {self._seconds:g} seconds"
            raise ApiError(504, message, "timeout") from None
        self.left -= isinstance(event, Finished | Failed)
        return number, event

    def cancel(self) -> None:
        """Cancel the unfinished images."""
        for ticket in self.tickets:
            ticket.cancel()

    def _add_event(self, number: int, event: Event) -> None:
        # The loop is closed if the server has stopped; then nobody reads events.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))
