"""Validates a request against the model that will generate its images."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import DisaError
from ...runtime.generation import Request
from ...runtime.sampling.noise import PhiloxNoise
from ..http.errors import ApiError, bad_request
from ..scheduling.worker import State, Worker
from .encoding import Encoding
from .schema import ImageRequest, option_names, parse, request_type

MAX_CLASS_NAME = 200
MAX_ENLARGEMENT = 4
"""Most pixels of an image, relative to the plan's own size: memory grows with their square, and a
single request must not take that of the whole machine."""
MAX_RANDOM_SEED = 2**31
"""Random seeds are short enough to be copied by hand."""


@dataclass(frozen=True)
class ValidatedImage:
    """One image of a validated request.

    Attributes:
        request: condition, options and noise.
        seed, index: numbers that determine the noise.
    """

    request: Request
    seed: int
    index: int


@dataclass(frozen=True)
class ValidatedRequest:
    """A request that has passed all checks.

    Attributes:
        worker: the model's worker.
        images: one entry for each image.
        encoding: file format of the images.
        by_url: whether the answer has URLs instead of images.
        stream, partial_images, progress: see `ImageRequest`.
    """

    worker: Worker
    images: Sequence[ValidatedImage]
    encoding: Encoding
    by_url: bool
    stream: bool
    partial_images: int
    progress: bool


def find_worker(workers: Mapping[str, Worker], name: Any) -> Worker:
    """Find the worker of a model that is ready; the first worker if no name is given.

    Raises:
        ApiError: 404 for a model that does not exist, 503 for one that is not ready.
    """
    if name is not None and not isinstance(name, str):
        raise bad_request("model: it must be a string", "model")
    worker = next(iter(workers.values())) if name is None else workers.get(name)
    if worker is None:
        message = f"there is no model {str(name)[:100]!r}: the models are {', '.join(workers)}"
        raise ApiError(404, message, "model_not_found", "model")
    if worker.state is not State.READY:
        headers = {"retry-after": "5"}
        code = "model_loading" if worker.state is State.LOADING else "shutting_down"
        message = f"the model {worker.name} is {worker.state}: try again later"
        raise ApiError(503, message, code, headers=headers)
    return worker


def validate_request(content: Mapping[str, Any], workers: Mapping[str, Worker]) -> ValidatedRequest:
    """Validate the body of a request.

    Raises:
        ApiError: 400 with the reason, or as in `find_worker`.
    """
    worker = find_worker(workers, content.get("model"))
    assert worker.model is not None
    family = worker.model.family
    body = parse(content, request_type(family.Options))
    stream = bool(body.stream)
    if not stream and (body.partial_images or body.progress):
        param = "partial_images" if body.partial_images else "progress"
        raise bad_request(f"{param}: this field needs stream", param)
    if stream and body.response_format == "url":
        raise bad_request("response_format: a stream carries b64_json", "response_format")
    encoding = Encoding(
        body.output_format or "png",
        100 if body.output_compression is None else body.output_compression,
    )
    if encoding.format == "png" and encoding.quality != 100:
        raise bad_request(
            "output_compression: this field is for jpeg and webp", "output_compression"
        )
    condition = _condition(worker, body)
    options = _options(worker, body)
    return ValidatedRequest(
        worker,
        [
            ValidatedImage(Request(condition, options, PhiloxNoise(seed, index)), seed, index)
            for seed, index in _seeds(body)
        ],
        encoding,
        body.response_format == "url",
        stream,
        body.partial_images or 0,
        bool(body.progress),
    )


def _condition(worker: Worker, body: ImageRequest) -> int | str:
    assert worker.model is not None
    family = worker.model.family
    conditions: dict[str, Any] = {}
    for param in ("prompt", "class_label"):
        value = getattr(body, param)
        if value is None:
            continue
        if family.classes is None and param == "class_label":
            raise bad_request("class_label: this model takes a prompt", param)
        if family.classes is not None and len(str(value)) > MAX_CLASS_NAME:
            raise bad_request(f"{param}: this model takes the name or number of a class", param)
        try:
            [conditions[param]] = family.conditions([value])
        except DisaError as error:
            raise bad_request(str(error), param) from error
    if not conditions:
        name = "prompt" if family.classes is None else "prompt or class_label"
        raise bad_request(f"there is nothing to generate: give {name}", "prompt")
    if len(set(conditions.values())) > 1:
        raise bad_request("prompt and class_label are different classes: give one", "class_label")
    condition: int | str = next(iter(conditions.values()))
    return condition


def _options(worker: Worker, body: ImageRequest) -> Any:
    assert worker.model is not None
    assert worker.warmed is not None
    family = worker.model.family
    names = option_names(family.Options)
    overrides = {name: value for name in names if (value := getattr(body, name)) is not None}
    width, height = worker.warmed.width, worker.warmed.height
    if body.size in (None, "auto"):
        overrides.pop("size", None)
    elif not (sides := re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", str(body.size), re.ASCII)):
        raise bad_request("size: must be WIDTHxHEIGHT, such as 512x512, or auto", "size")
    elif "size" not in names:
        if body.size != f"{width}x{height}":
            raise bad_request(f"size: this model generates {width}x{height}", "size")
    elif int(sides[1]) * int(sides[2] or sides[1]) > MAX_ENLARGEMENT * width * height:
        raise bad_request(
            f"size: at most {MAX_ENLARGEMENT} times the pixels of {width}x{height}", "size"
        )
    try:
        return family.options(overrides)
    except DisaError as error:
        raise bad_request(str(error), _param_of(family, overrides)) from error


def _param_of(family: Any, overrides: Mapping[str, Any]) -> str | None:
    """The option that an error is about, if it is refused even without the others."""
    for name, value in overrides.items():
        try:
            family.options({name: value})
        except DisaError:
            return name
    return None


def _seeds(body: ImageRequest) -> list[tuple[int, int]]:
    images, first = body.n or 1, body.first_image or 0
    if isinstance(body.seed, list):
        if len(body.seed) != images:
            raise bad_request(
                f"seed: give one number, or a list of {images}, one for each image", "seed"
            )
        return [(seed, first) for seed in body.seed]
    seed = secrets.randbelow(MAX_RANDOM_SEED) if body.seed is None else body.seed
    return [(seed, first + image) for image in range(images)]
