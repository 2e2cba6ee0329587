"""Shared by all families: grouping of samples, stepping and decoding."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic

import numpy as np

from ...engines.array_types import Ints
from ...engines.plan.plan import Plan
from ...engines.session import Session
from ...errors import DisaError
from ..generation import Image, Output, Request, Watcher, outputs_of, to_uint8
from ..sampling.denoise import Steps
from ..stats import Stats
from .cohort import Group, M, brought_together, group_by
from .conditions.labels import find_class
from .counts import read_count
from .options import SamplingOptions, plan_defaults
from .signatures import Signature

Sessions = Mapping[str, Session]
Decoded = list[tuple[Sequence[Any], Mapping[str, Any]]]
"""Samples and the decoder's outputs for them, call by call."""


class BaseFamily(ABC, Generic[M]):
    """A loaded model. See `generation.Family` for the public interface."""

    Options: type[SamplingOptions]
    classes: int | None
    width: int
    sequence: int

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        self.name = plan.manifest.family
        self._plan, self._sessions = plan, sessions
        self.token_sizes: dict[str, Any] = {"count": read_count(plan, "tokens", "count")}

    @staticmethod
    @abstractmethod
    def signature(plan: Plan) -> Signature:
        """The inputs whose shapes follow from the counts in a plan's manifest."""

    def session(self, graph: str) -> Session:
        """The session of a graph.

        Raises:
            DisaError: the plan does not have the graph.
        """
        try:
            return self._sessions[graph]
        except KeyError:
            raise DisaError(
                f"{self._plan.path} has no {graph} graph, which a {self.name} model needs: export "
                "the checkpoint again"
            ) from None

    def options(self, overrides: Mapping[str, Any]) -> Any:
        """See `generation.Family`."""
        defaults = plan_defaults(self._plan.manifest.defaults)
        return self.Options.of(self.name, self.token_sizes, defaults, overrides)

    @abstractmethod
    def iterations(self, options: Any) -> int:
        """See `generation.Family`."""

    @abstractmethod
    def conditions(self, wanted: Sequence[Any]) -> list[Any]:
        """See `generation.Family`."""

    @abstractmethod
    def start(self, requests: Sequence[Request], stats: Stats) -> list[M]:
        """See `generation.Family`."""

    @abstractmethod
    def key(self, sample: M) -> Hashable:
        """See `generation.Family`."""

    def step(self, samples: Sequence[M], stats: Stats, watch: Watcher | None = None) -> None:
        """See `generation.Family`."""
        groups = [self._together(members) for members in group_by(samples, self.key)]
        self._advance(groups, stats, watch)

    @abstractmethod
    def _advance(self, groups: Sequence[Group[M]], stats: Stats, watch: Watcher | None) -> None:
        """Advance each group by one AR iteration."""

    def _together(self, samples: Sequence[M]) -> Group[M]:
        group, new = brought_together(samples, self._home)
        # A cohort is also without them if they could not be computed when it was formed.
        if new or not group.cohort.constants:
            group.cohort.constants = self._constants(group.samples)
        return group

    @property
    @abstractmethod
    def _home(self) -> Session:
        """The session whose output memory is used for the arrays of cohorts."""

    @abstractmethod
    def _constants(self, samples: Sequence[M]) -> dict[str, Any]:
        """The backbone's inputs for samples of a new cohort, other than their arrays."""

    @abstractmethod
    def _decode(self, samples: Sequence[M]) -> Decoded:
        """The decoder's outputs for samples in any iteration."""

    def preview(self, samples: Sequence[M]) -> list[Image]:
        """See `generation.Family`."""
        found: dict[int, Image] = {}
        for members, decoded in self._decode(samples):
            if "image" not in decoded:
                raise DisaError(
                    f"{self._plan.path} has no decoder to pixels, so there are no previews: "
                    "export the checkpoint again with --vae"
                )
            images = to_uint8(np.asarray(decoded["image"]))
            found |= {id(m): image for m, image in zip(members, images, strict=True)}
        return [found[id(sample)] for sample in samples]

    def finish(self, samples: Sequence[M], stats: Stats) -> list[Output]:
        """See `generation.Family`."""
        if unfinished := [sample for sample in samples if not sample.done]:
            raise ValueError(f"{len(unfinished)} of the samples are not done")
        found: dict[int, Output] = {}
        with stats.timed("decoder"):
            for members, decoded in self._decode(samples):
                found |= {
                    id(m): output for m, output in zip(members, outputs_of(decoded), strict=True)
                }
        stats.images += len(samples)
        return [found[id(sample)] for sample in samples]


class ClassConditioned(BaseFamily[M]):
    """Shared by class-conditional families."""

    classes: int

    def __init__(self, plan: Plan, sessions: Sessions) -> None:
        self.classes = read_count(plan, "model", "class_num")
        super().__init__(plan, sessions)
        self.channels = read_count(plan, "tokens", "channels")
        self.tokens = self.token_sizes["count"]
        self.width = read_count(plan, "model", "encoder_embed_dim")
        buffered = "buffer_size" in plan.manifest.model
        buffer = read_count(plan, "model", "buffer_size") if buffered else 0
        self.sequence = buffer + self.tokens
        self._names = plan.manifest.class_names

    def conditions(self, wanted: Sequence[Any]) -> list[int]:
        """See `generation.Family`; None means no class."""
        return [
            self.classes if label is None else find_class(label, self.classes, self._names)
            for label in wanted
        ]

    def class_index(self, samples: Sequence[M], guided: bool) -> Ints:
        """Class of each image [guidance, batch]; no class in the unconditional half."""
        labels = np.array([sample.request.condition for sample in samples], np.int64)
        return np.stack([labels, np.full_like(labels, self.classes)]) if guided else labels[None]


class StepPlans:
    """The different step sequences of items that share head calls, each with a key."""

    def __init__(self) -> None:
        self.plans: list[Steps] = []
        self._known: dict[Hashable, int] = {}

    def index(self, key: Hashable, steps: Steps) -> int:
        """The index of a sequence of steps; sequences with equal keys are stored once."""
        if key not in self._known:
            self._known[key] = len(self.plans)
            self.plans.append(steps)
        return self._known[key]
