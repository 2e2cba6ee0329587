"""The rounds of generation that measure a plan: with its defaults, and with reused caches."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ...engines.plan.manifest import GraphInfo
from ...errors import DisaError
from ...runtime.sampling.refresh import parse_refresh
from ...runtime.sampling.schedule import FittedSchedule
from ...runtime.sessions import ON_DEMAND

LONGEST = 9
"""Most AR iterations from one full pass to the next, as in LazyMAR (arXiv 2503.12450)."""
ROUNDS_IN_A_RUN = 4
"""Least number of full passes of an image, so that early and late ones are measured."""


@dataclass
class Round:
    """Images sampled with the same options.

    Attributes:
        sampling: the options.
        graphs: graphs whose ranges and calls are measured in this round.
        calls: number of single calls and of loops of each graph in one batch.
        results: results of every loop of a graph.
    """

    sampling: Any
    graphs: frozenset[str]
    calls: dict[str, tuple[int, int]] = field(default_factory=dict)
    results: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def refresh(self) -> str | None:
        """AR iterations in which the backbone computes everything; None for all."""
        value: str | None = getattr(self.sampling, "refresh", None)
        return value

    @property
    def where(self) -> str:
        """For messages: " with --refresh 4:0", or nothing."""
        return f" with --refresh {self.refresh}" if self.refresh else ""

    def check_called(self, name: str) -> None:
        """Check that a graph was called.

        Raises:
            DisaError: it was not, so it was not measured.
        """
        if self.calls[name] == (0, 0):
            raise DisaError(
                f"the graph {name} is not called while images are generated{self.where}, so that "
                "its ranges cannot be measured: export with other sampling options"
            )


def rounds_of(graphs: Mapping[str, GraphInfo], options: Any, iterations: int) -> list[Round]:
    """The rounds that measure the given graphs.

    Args:
        graphs: the graphs to be quantised.
        options: the plan's sampling options.
        iterations: AR iterations of an image with these options.

    Raises:
        DisaError: the backbone is cached, but there are too few iterations to reuse caches.
    """
    # Adaptive steps would depend on rounding, and could not be compared one by one.
    plain = replace(options, tolerance=0.0)
    if "refresh" in {option.name for option in fields(options)}:
        # A schedule that sets full passes would set them again.
        schedule = options.schedule
        if isinstance(schedule, FittedSchedule):
            schedule = replace(schedule, refresh=None)
        plain = replace(plain, schedule=schedule, refresh=None)
    on_demand = {name for name, info in graphs.items() if info.traits.role in ON_DEMAND}
    rounds = [Round(plain, frozenset(graphs.keys() - on_demand))]
    if on_demand:
        refresh = _with_both_passes(options.refresh, iterations)
        rounds.append(Round(replace(plain, refresh=refresh), frozenset(on_demand)))
    return rounds


def _with_both_passes(refresh: str | None, iterations: int) -> str:
    """`refresh` if it has both kinds of passes, otherwise a value that has."""
    own = f"{min(LONGEST, max(2, iterations // ROUNDS_IN_A_RUN))}:0"
    for each in (refresh, own):
        if each is not None and len(set(_full(each, iterations))) == 2:
            return each
    raise DisaError(
        f"images of {iterations} AR iteration have only full passes, so a cached backbone "
        "cannot be measured: export with more iterations, or without --cached-backbone"
    )


def _full(refresh: str, iterations: int) -> Iterable[bool]:
    """Whether each AR iteration is a full pass."""
    plan = parse_refresh(refresh)
    return (plan.is_full(iteration) for iteration in range(iterations))
