"""Loads a model and warms it up before its first request."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engines.plan.plan import Plan
from ...errors import InvalidRequest, OutOfMemory
from ...runtime.generation import Family, Output, Request, generate
from ...runtime.pipeline import Pipeline
from ...runtime.sampling.noise import PhiloxNoise
from ...runtime.stats import Stats

log = logging.getLogger(__name__)

WARM_UP_PROMPT = "a photo"
FEW_STEPS = 2


@dataclass(frozen=True)
class Model:
    """A model with its graphs loaded.

    Attributes:
        family: the model's family, which generates images.
        family_name: name of the family, such as "mar".
        engine: the engine that really runs, as its sessions describe it.
        precision: precision of the weights.
        class_names: one name for each class, or None.
        defaults: sampling options for requests that do not set them.
        check: raises DisaError if the weights are not those that were loaded any more.
    """

    family: Family[Any]
    family_name: str
    engine: str
    precision: str
    class_names: Sequence[str] | None
    defaults: Mapping[str, Any]
    check: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class WarmUp:
    """Result of the warm-up.

    Attributes:
        images: batch sizes that were run.
        seconds: duration of the warm-up.
        width, height: pixels of an image with the plan's options.
    """

    images: tuple[int, ...]
    seconds: float
    width: int
    height: int


def load_plan(path: Path, engine: str, threads: int | None) -> Model:
    """Open a plan and load its graphs.

    For a plan in fp32, "auto" selects ONNX Runtime rather than OpenVINO on processors: the batch
    of a server changes with each AR iteration, and every new shape costs OpenVINO a millisecond
    a call (docs/serving.md).

    Raises:
        DisaError: the plan is damaged, or the engine cannot run it here.
    """
    pipe = Pipeline.from_plan(path, engine, threads=threads, exact=engine == "auto")
    manifest = pipe.plan.manifest
    return Model(
        pipe.family,
        manifest.family,
        pipe.engine,
        manifest.precision,
        pipe.class_names,
        manifest.defaults,
        pipe.plan.check_not_overwritten,
    )


def plan_name(path: Path) -> str:
    """The name of a plan's model.

    Raises:
        DisaError: the file is not a plan.
    """
    with Plan.open(path) as plan:
        return plan.manifest.name


def warm_up(
    model: Model,
    max_images: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> WarmUp:
    """Generate like real requests: one image, then larger batches, with preview and finish.

    Engines compile kernels and reserve memory when they first see a shape. Each AR iteration
    has its own shapes, so every batch runs through all iterations, with few denoising steps:
    the number of steps does not change any shape. If memory runs out, no larger batch follows: the
    scheduler halves batches that are too large.

    Args:
        max_images: largest batch to expect.
        seconds: no larger batch is started after this time.

    Raises:
        InvalidRequest: the plan does not decode to pixels.
    """
    begin = clock()
    first = _generate(model, 1)
    if first.image is None:
        raise InvalidRequest(
            "the plan has no decoder to pixels, so it cannot be served: export the checkpoint "
            "with --vae"
        )
    warmed, last = [1], clock() - begin
    for images in doubling(max_images):
        # A batch of twice the size takes about twice as long at most.
        if images > 1 and clock() - begin + 2 * last <= seconds:
            before = clock()
            try:
                _generate(model, images)
            except (OutOfMemory, MemoryError):
                log.warning("there is not enough memory for %d images at once", images)
                break
            warmed.append(images)
            last = clock() - before
    height, width = first.image.shape[:2]
    return WarmUp(tuple(warmed), clock() - begin, width, height)


def _generate(model: Model, images: int) -> Output:
    family = model.family
    example = WARM_UP_PROMPT if family.classes is None else 0
    [condition] = family.conditions([example])
    options = family.options({"steps": FEW_STEPS})
    requests = [Request(condition, options, PhiloxNoise(0, image)) for image in range(images)]
    samples = family.start(requests, Stats())
    generate(family, samples, Stats())
    output = family.finish(samples, Stats())[0]
    if output.image is not None:
        family.preview(samples)
    return output


def doubling(most: int) -> Iterator[int]:
    """1, 2, 4 and so on up to `most`, then `most` itself."""
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most
