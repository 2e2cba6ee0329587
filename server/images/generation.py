"""Turns the events of a job into a response or a stream of events."""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from ...runtime.generation import Image
from ..http.errors import as_api_error
from ..scheduling.ticket import Advanced, Failed, Finished, Previewed
from .answer import answer, completed_event, partial_event, progress_event
from .job import Job
from .validation import ValidatedRequest

KEEP_ALIVE_SECONDS = 15.0

Content = dict[str, Any]


async def collect(
    job: Job, store_file: Callable[[bytes], Awaitable[str]], log_facts: Content
) -> Content:
    """Wait for all images of a job; returns the body of the response.

    Args:
        store_file: stores an encoded image and returns its URL.
        log_facts: the facts for the access log, to which the times are added.

    Raises:
        ApiError: an image failed or cannot be encoded or stored, or the time limit of the request
            has passed.
    """
    request = job.request
    finished: dict[int, Finished] = {}
    while job.left:
        if (happened := await job.next(math.inf)) is None:
            continue
        number, event = happened
        if isinstance(event, Failed):
            raise as_api_error(event.error, request.worker.retry_after())
        if isinstance(event, Finished):
            finished[number] = event
    done = [finished[number] for number in range(len(request.images))]
    add_times(log_facts, done)
    try:
        files = await asyncio.gather(*(encode(request, one.output.image) for one in done))
        urls = [await store_file(file) for file in files] if request.by_url else None
        return answer(request, done, files, urls)
    except Exception as error:
        raise as_api_error(error) from error


async def stream(job: Job, log_facts: Content) -> AsyncGenerator[Content | None, None]:
    """The events of a job; None when there was no event for `KEEP_ALIVE_SECONDS`.

    The first image that fails ends the stream with an error event. Closing the generator cancels
    the unfinished images.

    Args:
        log_facts: the facts for the access log, to which the outcome and the times are added.
    """
    request = job.request
    shown = [0] * len(request.images)
    done: list[Finished] = []
    log_facts["outcome"] = "client disconnected"
    try:
        while job.left:
            if (happened := await job.next(KEEP_ALIVE_SECONDS)) is None:
                yield None
                continue
            match happened:
                case number, Advanced() as advanced:
                    yield progress_event(number, advanced)
                case number, Previewed(_, image):
                    file = await encode(request, image)
                    yield partial_event(request, number, shown[number], image, file)
                    shown[number] += 1
                case number, Finished() as finished:
                    done.append(finished)
                    file = await encode(request, finished.output.image)
                    yield completed_event(request, number, finished, file)
                case _, Failed(error):
                    raise as_api_error(error, request.worker.retry_after())
        log_facts["outcome"] = "completed"
    except Exception as error:
        failure = as_api_error(error)
        log_facts["outcome"] = failure.code
        yield {"type": "error", **failure.content()}
    finally:
        job.cancel()
        add_times(log_facts, done)


async def encode(request: ValidatedRequest, image: Image | None) -> bytes:
    """Encode an image in the requested file format, in a thread beside the event loop."""
    # Plans without pixels are not served: see `warm_up`.
    assert image is not None
    return await asyncio.to_thread(request.encoding.encode, image)


def add_times(log_facts: Content, finished: list[Finished]) -> None:
    """Add the longest times of a request's images to the facts for the access log."""
    if finished:
        log_facts["queue_seconds"] = round(max(one.waited for one in finished), 4)
        log_facts["model_seconds"] = round(max(one.ran for one in finished), 4)
