"""Sampling options of masked autoregressive generation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ....engines.array_types import Ints
from ....errors import InvalidRequest
from ...sampling.guidance import GuidanceSchedule
from ...sampling.refresh import RefreshPlan, parse_refresh
from ...sampling.sampler import SamplerName, StepTable, respaced_table, step_table
from ...sampling.schedule import AnnealedSchedule, FittedSchedule, Strategy, as_schedule
from ..options import Limits, SamplingOptions, about
from .partition import Order, check_iterations, prediction_counts

ADAPTIVE_SAMPLERS = (SamplerName.DDPM, SamplerName.DDIM)
"""Samplers whose steps can be skipped at run time, because their timesteps are whole numbers."""


@dataclass(frozen=True, kw_only=True)
class MaskedOptions(SamplingOptions):
    """Sampling options of masked autoregressive generation."""

    num_iterations: int = field(
        default=64,
        metadata=about(
            int,
            "AR iterations of an image, at most its number of tokens.",
            limits=Limits(1, math.inf),
            aliases=("--iterations",),
        ),
    )
    sampler: SamplerName = field(
        default=SamplerName.DDPM,
        metadata=about(SamplerName, "Rule that turns the head's prediction into a denoising step."),
    )
    guidance_schedule: GuidanceSchedule = field(
        default=GuidanceSchedule.LINEAR,
        metadata=about(
            GuidanceSchedule,
            "Whether the guidance scale grows with the number of known tokens.",
            aliases=("--cfg-schedule",),
        ),
    )
    temperature: float = field(
        default=1.0,
        metadata=about(
            float,
            "Scales the noise of each denoising step; only ddpm adds noise.",
            limits=Limits(0, 10),
        ),
    )
    order: Order = field(
        default=Order.RANDOM,
        metadata=about(
            Order,
            "Order in which tokens are generated; checkerboard generates the cells of one colour "
            "in most AR iterations and the others in the last eighth of them.",
        ),
    )
    refresh: str | None = field(
        default=None,
        metadata=about(
            str,
            "Full passes of a cached backbone: AR iterations in which it computes everything, such "
            "as 9:5 (the first 5, then every 9th) or a list 0,1,2,9. In the others it reuses "
            "earlier results, which is approximate. By default the backbone is not cached.",
            metavar="EVERY:FIRST",
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        fitted = self._fitted
        if fitted and fitted.iterations not in (None, self.num_iterations):
            raise InvalidRequest(
                f"the schedule is for {fitted.iterations} AR iterations, not "
                f"{self.num_iterations}: leave out num_iterations, or the schedule"
            )
        if fitted and fitted.refresh is not None:
            listed = ",".join(map(str, fitted.refresh))
            if self.refresh not in (None, listed):
                raise InvalidRequest("the schedule sets the full passes: leave out refresh")
            object.__setattr__(self, "refresh", listed)
        if self.refresh is not None:
            late = [n for n in parse_refresh(self.refresh).listed if n >= self.num_iterations]
            if late:
                raise InvalidRequest(
                    f"full pass {min(late)} does not exist in {self.num_iterations} AR iterations "
                    f"(0 to {self.num_iterations - 1}): leave it out of refresh"
                )
        if self.tolerance and self.sampler not in ADAPTIVE_SAMPLERS:
            raise InvalidRequest(f"adaptive steps work with ddpm and ddim, not with {self.sampler}")

    @classmethod
    def of_schedule(
        cls, family: str, values: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> dict[str, Any]:
        """See `SamplingOptions.of_schedule`; a fitted schedule may also set the AR iterations."""
        found, schedule = dict(values), as_schedule(values["schedule"])
        found["schedule"] = schedule
        if not isinstance(schedule, FittedSchedule) or schedule.iterations is None:
            return found
        if overrides.get("schedule") is None:
            # The options of a request take precedence over the plan's own schedule.
            if overrides.get("num_iterations") not in (None, schedule.iterations):
                return {**found, "schedule": FittedSchedule(schedule.counts)}
            if overrides.get("refresh") is not None:
                schedule = found["schedule"] = replace(schedule, refresh=None)
        if overrides.get("num_iterations") is None:
            found["num_iterations"] = schedule.iterations or len(schedule.counts)
        if schedule.refresh is not None and overrides.get("refresh") is None:
            found["refresh"] = None
        return found

    def check_tokens(self, tokens: Mapping[str, Any]) -> None:
        self.check_partition(self.image_tokens(tokens))

    def check_partition(self, tokens: int) -> None:
        """Check that the AR iterations can predict `tokens` tokens.

        Raises:
            InvalidRequest: they cannot.
        """
        fitted = self._fitted
        if fitted and fitted.tokens is not None and sum(fitted.tokens) != tokens:
            raise InvalidRequest(
                f"the schedule is for images of {sum(fitted.tokens)} tokens, and these have "
                f"{tokens}: give num_iterations and steps, or a schedule that was calibrated at "
                "this size"
            )
        check_iterations(self.num_iterations, tokens)

    def partition(self, tokens: int) -> list[int]:
        """Number of tokens that each AR iteration predicts, of `tokens` in all."""
        self.check_partition(tokens)
        fitted = self._fitted
        if fitted and fitted.tokens is not None:
            return list(fitted.tokens)
        return prediction_counts(tokens, self.num_iterations, self.order)

    @property
    def _fitted(self) -> FittedSchedule | None:
        return self.schedule if isinstance(self.schedule, FittedSchedule) else None

    @cached_property
    def refresh_plan(self) -> RefreshPlan | None:
        """The AR iterations in which the backbone computes everything; None for all of them."""
        return None if self.refresh is None else parse_refresh(self.refresh)

    def guidance(self, known: int, tokens: int) -> float:
        """Guidance scale of an AR iteration after which `known` of `tokens` tokens are known."""
        if self.guidance_schedule is GuidanceSchedule.CONSTANT:
            return self.guidance_scale
        return 1 + (self.guidance_scale - 1) * known / tokens

    def table(self, iteration: int) -> StepTable:
        """The denoising steps of AR iteration `iteration`."""
        return self.table_of(self.steps_of(iteration, self.num_iterations))

    def table_of(self, steps: int) -> StepTable:
        """The table of `steps` nominal denoising steps."""
        schedule = self.step_schedule
        # A schedule without a strategy covers the same timesteps as an annealed run.
        fixed = isinstance(schedule, AnnealedSchedule) and schedule.strategy is Strategy.FIXED
        return step_table(self.sampler, steps, self.temperature, fixed)

    def subsample(self, table: StepTable, kept: Ints) -> StepTable:
        """The steps of a table with the indices `kept`, ascending, as a table of this sampler."""
        timesteps = [int(timestep) for timestep in table.timesteps[kept][::-1]]
        return respaced_table(self.sampler, timesteps, self.temperature)
