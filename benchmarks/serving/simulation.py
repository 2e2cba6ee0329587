"""Simulates the server's scheduler on other hardware, with a simulated clock.

The scheduler and its policies are the real ones. Only the model is replaced by a cost model of its
calls: seconds = launch + rows * seconds of a row.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from disa.runtime.families.masked.partition import prediction_counts
from disa.runtime.generation import Image, Output, Request, Sample, Watcher
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.sampling.schedule import AnnealedSchedule
from disa.runtime.stats import Stats
from disa.server.scheduling.policy import Policy
from disa.server.scheduling.scheduler import Scheduler
from disa.server.scheduling.ticket import Event, Finished, Previewed, Ticket
from disa.server.scheduling.waiting import WaitingQueue

from .load import Served


@dataclass(frozen=True)
class CostModel:
    """Seconds of the calls of a model, and the sizes that determine their rows.

    Attributes:
        backbone_launch: seconds of a backbone call of any size.
        backbone_token: seconds of a token in it; an image with guidance has each token twice.
        head_launch, head_row: seconds of a head call of any size, and of a row in it.
        decoder_launch, decoder_image: seconds of a decoder call, and of an image in it.
        tokens: tokens of an image.
        buffer: additional tokens of the backbone.
        iterations: AR iterations.
        upper, lower: denoising steps of the first and of the last AR iteration.
    """

    backbone_launch: float = 2e-3
    backbone_token: float = 2e-6
    head_launch: float = 1e-4
    head_row: float = 6e-7
    decoder_launch: float = 1e-3
    decoder_image: float = 4e-3
    tokens: int = 256
    buffer: int = 64
    iterations: int = 64
    upper: int = 50
    lower: int = 5


class SimulatedClock:
    """A clock whose time is set by the simulation."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class IterationPlan:
    """The tokens and the denoising steps of each AR iteration of an image."""

    counts: tuple[int, ...]
    steps: tuple[int, ...]

    @classmethod
    @cache
    def of(cls, costs: CostModel, iterations: int) -> "IterationPlan":
        """The plan for a number of AR iterations."""
        schedule = AnnealedSchedule(costs.upper, costs.lower)
        return cls(
            tuple(prediction_counts(costs.tokens, iterations)),
            tuple(schedule.steps(index, iterations) for index in range(iterations)),
        )


class SimulatedFamily:
    """A family that only advances the clock. See `disa.runtime.generation.Family`.

    Args:
        ragged: whether images at different iterations share a backbone call, each padded to the
            most visible tokens among them.
    """

    Options: type[Any] = IterationPlan
    classes: int | None = 1000
    width = 0
    sequence = 0

    def __init__(self, costs: CostModel, clock: SimulatedClock, ragged: bool = False) -> None:
        self.costs, self.clock, self.ragged = costs, clock, ragged

    def options(self, overrides: Mapping[str, Any]) -> IterationPlan:
        return IterationPlan.of(self.costs, overrides.get("num_iterations", self.costs.iterations))

    def iterations(self, options: IterationPlan) -> int:
        return len(options.counts)

    def conditions(self, wanted: Sequence[Any]) -> list[Any]:
        return list(wanted)

    def start(self, requests: Sequence[Request], stats: Stats) -> list[Sample]:
        return [Sample(request, len(request.options.counts)) for request in requests]

    def key(self, sample: Sample) -> Hashable:
        return None if self.ragged else (sample.iteration, sample.iterations)

    def step(self, samples: Sequence[Sample], stats: Stats, watch: Watcher | None = None) -> None:
        groups: dict[Hashable, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(self.key(sample), []).append(sample)
        self.clock.now += sum(map(self._backbone, groups.values())) + self._head(samples)
        for sample in samples:
            sample.cost.steps.append(sample.request.options.steps[sample.iteration])
            sample.iteration += 1

    def preview(self, samples: Sequence[Sample]) -> list[Image]:
        self._decode(samples)
        return [np.zeros((1, 1, 1), np.uint8)] * len(samples)

    def finish(self, samples: Sequence[Sample], stats: Stats) -> list[Output]:
        self._decode(samples)
        return [Output(None, np.zeros((1, 1, 1), np.float32), True)] * len(samples)

    def _backbone(self, samples: Sequence[Sample]) -> float:
        costs = self.costs
        most = max(known(sample) for sample in samples)
        # Half of the layers process the known tokens, the other half all tokens.
        tokens = (2 * costs.buffer + most + costs.tokens) / 2
        return costs.backbone_launch + 2 * len(samples) * tokens * costs.backbone_token

    def _head(self, samples: Sequence[Sample]) -> float:
        rows = np.array([sample.request.options.counts[sample.iteration] for sample in samples])
        steps = np.array([sample.request.options.steps[sample.iteration] for sample in samples])
        launches = int(steps.max()) * self.costs.head_launch
        return launches + float((2 * rows * steps).sum()) * self.costs.head_row

    def _decode(self, samples: Sequence[Sample]) -> None:
        self.clock.now += self.costs.decoder_launch + len(samples) * self.costs.decoder_image


def known(sample: Sample) -> int:
    """Number of tokens that were sampled so far."""
    return sum(sample.request.options.counts[: sample.iteration])


def simulate(
    costs: CostModel,
    policy: Policy,
    arrivals: Sequence[tuple[float, int]],
    max_images: int,
    ragged: bool = False,
) -> list[Served]:
    """Simulate requests for one image with one preview.

    Args:
        arrivals: time and number of AR iterations of each request; the number is its kind.
    """
    clock = SimulatedClock()
    queue = WaitingQueue(len(arrivals) + 1)
    family = SimulatedFamily(costs, clock, ragged)
    scheduler = Scheduler(family, policy, queue, max_images, clock=clock)
    served: dict[int, Served] = {}
    first: dict[int, float] = {}

    def ticket(number: int, at: float, iterations: int) -> Ticket:
        def notify(event: Event) -> None:
            if isinstance(event, Previewed):
                first.setdefault(number, clock.now - at)
            elif isinstance(event, Finished):
                took = clock.now - at
                served[number] = Served(str(iterations), took, first.get(number), clock.now)

        options = family.options({"num_iterations": iterations})
        made = Ticket(Request(0, options, PhiloxNoise(0, number)), notify, previews=1)
        made.submitted = at
        return made

    coming = [(number, *arrival) for number, arrival in enumerate(arrivals)][::-1]
    while len(served) < len(arrivals):
        while coming and coming[-1][1] <= clock.now:
            queue.put([ticket(*coming.pop())])
        if not scheduler.tick():
            delay = scheduler.idle_for()
            ends = [clock.now + delay] if delay is not None else []
            clock.now = max(clock.now + 1e-9, min([*ends, *(one[1] for one in coming[-1:])]))
    return [served[number] for number in range(len(arrivals))]
