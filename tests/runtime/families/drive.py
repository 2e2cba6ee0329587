"""Runs families as tests need them: with sessions that are watched, and with recorded noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from disa.engines.open import open_session
from disa.engines.plan.plan import Plan
from disa.engines.session import Session
from disa.runtime.generation import Request, generate
from disa.runtime.pipeline import Pipeline
from disa.runtime.replay.flow import FlowReplay, recorded_options
from disa.runtime.replay.recorded_noise import replayed
from disa.runtime.replay.reference import Difference, RecordedRun
from disa.runtime.sampling.noise import PhiloxNoise
from disa.runtime.stats import Stats


class Spy:
    """A session that remembers the shapes of its calls, and the guidance and steps of its loops."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.calls: list[dict[str, tuple[int, ...]]] = []
        self.loops: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, inputs: Mapping[str, Any]) -> Any:
        self.calls.append({name: value.shape for name, value in inputs.items()})
        return self._session.run(inputs)

    def iterate(self, **parts: Mapping[str, Any]) -> Any:
        constants = parts["constants"]
        guidance = len(constants["condition"]) if "condition" in constants else 0
        self.loops.append((guidance, len(parts["per_step"]["step"])))
        return self._session.iterate(**parts)


def spied(path: Path) -> tuple[Pipeline, dict[str, Spy]]:
    """A pipeline whose sessions are watched."""
    plan = Plan.open(path)
    spies = {name: Spy(open_session(plan, name, "cpu")) for name in plan.manifest.graphs}
    return Pipeline(plan, spies), spies  # type: ignore[arg-type]


def latents_of(
    pipe: Pipeline, conditions: Sequence[Any], options: Any, images: Sequence[int], seed: int = 0
) -> np.ndarray[Any, Any]:
    """Latents of these images of a seed, drawn together."""
    requests = [
        Request(condition, options, PhiloxNoise(seed, image))
        for condition, image in zip(conditions, images, strict=True)
    ]
    stats = Stats()
    samples = pipe.family.start(requests, stats)
    generate(pipe.family, samples, stats)
    return np.stack([output.latents for output in pipe.family.finish(samples, stats)])


def replay_flow_run(pipe: Pipeline, reference: RecordedRun) -> list[Difference]:
    """A recorded run of a flow family, generated again."""
    images = len(reference["labels"])
    options = recorded_options(reference, pipe.family.Options)
    replay = FlowReplay(reference, images)
    return replayed(pipe, reference["labels"].tolist(), options, replay, reference)
