"""Responses and events in the format of OpenAI's API, with additional fields."""

import base64
import time
from collections.abc import Sequence
from typing import Any

from ...runtime.generation import Image
from ..scheduling.ticket import Advanced, Finished
from .validation import ValidatedImage, ValidatedRequest

USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Clients expect this field; the server does not count tokens."""


def size_of(image: Image) -> str:
    """The size of an image [H, W, channels] as WIDTHxHEIGHT."""
    return f"{image.shape[1]}x{image.shape[0]}"


def encoded(data: bytes) -> str:
    """The data in base64."""
    return base64.b64encode(data).decode("ascii")


def image_facts(image: ValidatedImage, finished: Finished) -> dict[str, Any]:
    """The additional fields of a finished image.

    Returns:
        seed and index, which repeat the image; steps, the denoising steps of each AR iteration;
        head_calls, their sum; head_rows, the rows of this image in these calls; seconds, the time
        in the queue and in the model.
    """
    return {
        "seed": image.seed,
        "index": image.index,
        "steps": finished.cost.steps,
        "head_calls": sum(finished.cost.steps),
        "head_rows": finished.cost.head_rows,
        "seconds": {"queue": round(finished.waited, 4), "model": round(finished.ran, 4)},
    }


def answer(
    request: ValidatedRequest,
    finished: Sequence[Finished],
    files: Sequence[bytes],
    urls: Sequence[str] | None,
) -> dict[str, Any]:
    """The body of the response to a request without `stream`.

    Args:
        finished: one entry for each image.
        files: the encoded images.
        urls: URLs of the files, if the request asks for URLs; None to include the files.
    """
    data = []
    for number, (image, done, file) in enumerate(zip(request.images, finished, files, strict=True)):
        content = {"url": urls[number]} if urls else {"b64_json": encoded(file)}
        data.append({**content, **image_facts(image, done)})
    pixels = finished[0].output.image
    assert pixels is not None
    return {
        "created": int(time.time()),
        "model": request.worker.name,
        "data": data,
        "size": size_of(pixels),
        "usage": USAGE,
        **_format_fields(request),
    }


def partial_event(
    request: ValidatedRequest, number: int, partial: int, image: Image, file: bytes
) -> dict[str, Any]:
    """The event of a preview.

    Args:
        number: position of the image in the request, from 0.
        partial: number of previews of this image before this one.
        file: the encoded preview.
    """
    return {
        "type": "image_generation.partial_image",
        "partial_image_index": partial,
        **_event(request, number, image, file),
    }


def completed_event(
    request: ValidatedRequest, number: int, finished: Finished, file: bytes
) -> dict[str, Any]:
    """The event of a finished image, at position `number` in the request."""
    assert finished.output.image is not None
    return {
        "type": "image_generation.completed",
        "usage": USAGE,
        **_event(request, number, finished.output.image, file),
        **image_facts(request.images[number], finished),
    }


def progress_event(number: int, advanced: Advanced) -> dict[str, Any]:
    """The event after an AR iteration of the image at position `number` in the request."""
    return {
        "type": "image_generation.progress",
        "image": number,
        "iteration": advanced.iteration,
        "iterations": advanced.iterations,
        "steps": advanced.steps,
    }


def _event(request: ValidatedRequest, number: int, image: Image, file: bytes) -> dict[str, Any]:
    return {
        "b64_json": encoded(file),
        "created_at": int(time.time()),
        "image": number,
        "size": size_of(image),
        **_format_fields(request),
    }


def _format_fields(request: ValidatedRequest) -> dict[str, Any]:
    return {
        "background": "opaque",
        "output_format": request.encoding.format,
        "quality": "auto",
    }
