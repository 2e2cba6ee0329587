"""A model without a model: images whose pixels say what was asked for, at any cost and failing."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from disa.errors import DisaError, InvalidRequest
from disa.runtime.generation import Image, Output, Request, Sample, Watcher
from disa.runtime.stats import Stats
from disa.server.scheduling.model import Model

CLASS_NAMES = ("apple", "pear", "sports car, sport car", "sneaker")
SIDE = 16


@dataclass(frozen=True)
class Limits:
    low: float
    high: float
    open: bool = False


class Strategy(StrEnum):
    LINEAR = "linear"
    CONSTANT = "constant"


def option(default: Any, kind: type[Any], limits: Limits | None = None) -> Any:
    choices = [str(choice) for choice in kind] if hasattr(kind, "__members__") else None
    about = {"kind": kind, "help": "Some help.", "limits": limits, "choices": choices}
    return field(default=default, metadata=about)


@dataclass(frozen=True, kw_only=True)
class FakeOptions:
    num_iterations: int = option(4, int, Limits(1, 64))
    steps: str = option("3", str)
    strategy: str = option("linear", Strategy)
    guidance_scale: float = option(1.0, float, Limits(0, 1000, open=True))
    schedule: Any = option(None, Path)  # noqa: RUF009


class FakeFamily:
    """See `disa.runtime.generation.Family`.

    Attributes:
        seconds: of one AR iteration, and of one image in it.
        failing: called with the samples of each step; what it raises, the step raises.
        steps: how many samples each step took.
        entered: called at the start of each step.
    """

    Options = FakeOptions
    classes: int | None = len(CLASS_NAMES)
    width = 8
    sequence = 16

    def __init__(self, seconds: float = 0.0, seconds_an_image: float = 0.0) -> None:
        self.seconds, self.seconds_an_image = seconds, seconds_an_image
        self.failing: Callable[[Sequence[Sample]], None] = lambda samples: None
        self.failing_start: Callable[[Sequence[Request]], None] = lambda requests: None
        self.failing_finish: Callable[[Sequence[Sample]], None] = lambda samples: None
        self.finite: Callable[[Sample], bool] = lambda sample: True
        self.entered: Callable[[], object] = lambda: None
        self.steps: list[int] = []

    def options(self, overrides: Mapping[str, Any]) -> FakeOptions:
        known = {each.name for each in fields(FakeOptions)}
        if unknown := set(overrides) - known:
            raise InvalidRequest(f"a fake model has no option {unknown.pop()}")
        options = FakeOptions(**overrides)
        if not str(options.steps).isdigit() or not 1 <= int(options.steps) <= 1000:
            raise InvalidRequest(f"steps are UPPER:LOWER, not {options.steps!r}")
        return options

    def iterations(self, options: FakeOptions) -> int:
        return options.num_iterations

    def conditions(self, wanted: Sequence[Any]) -> list[int | str]:
        if self.classes is None:
            if not all(isinstance(prompt, str) and prompt.strip() for prompt in wanted):
                raise DisaError("a prompt is empty: describe an image")
            return list(wanted)
        from disa.runtime.families.conditions.labels import find_class

        return [find_class(label, self.classes, CLASS_NAMES) for label in wanted]

    def start(self, requests: Sequence[Request], stats: Stats) -> list[Sample]:
        self.failing_start(requests)
        return [Sample(request, request.options.num_iterations) for request in requests]

    def key(self, sample: Sample) -> Hashable:
        return sample.iteration

    def step(self, samples: Sequence[Sample], stats: Stats, watch: Watcher | None = None) -> None:
        self.entered()
        self.failing(samples)
        time.sleep(self.seconds + self.seconds_an_image * len(samples))
        self.steps.append(len(samples))
        for sample in samples:
            sample.iteration += 1
            sample.cost.steps.append(int(sample.request.options.steps))
            sample.cost.head_rows += int(sample.request.options.steps)
        stats.head_calls += max(int(sample.request.options.steps) for sample in samples)
        stats.head_rows += sum(int(sample.request.options.steps) for sample in samples)

    def preview(self, samples: Sequence[Sample]) -> list[Image]:
        return [picture(sample.request, sample.iteration) for sample in samples]

    def finish(self, samples: Sequence[Sample], stats: Stats) -> list[Output]:
        self.failing_finish(samples)
        stats.images += len(samples)
        return [
            Output(
                picture(sample.request, sample.iteration),
                np.zeros((1, 4, 4), np.float32),
                self.finite(sample),
            )
            for sample in samples
        ]


def picture(request: Request, iteration: int) -> Image:
    """Pixels that depend on condition, options, noise and iteration alone."""
    order = request.noise.order(SIDE * SIDE).reshape(SIDE, SIDE, -1)[..., :1]
    steps = int(request.options.steps)
    first = request.condition if isinstance(request.condition, int) else len(request.condition)
    image: Image = ((order * 7 + first * 31 + steps * 3 + iteration) % 256).astype(np.uint8)
    return image


def fake_model(family: FakeFamily | None = None) -> Model:
    """A loaded fake model."""
    family = family or FakeFamily()
    names = CLASS_NAMES if family.classes is not None else None
    return Model(family, "fake", "fake engine", "fp32", names, {})
