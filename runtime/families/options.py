"""Sampling options: one frozen dataclass for each family.

The metadata of a field describe the option and its valid values. From them come the flags of the
commands, `--help`, the check of a plan's defaults at export, the arguments of `Pipeline` and the
fields of a server request. The object itself holds the settings of the loop.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from ...checked_numbers import whole_number
from ...engines.plan.version1 import DEFAULTS as RENAMED
from ...errors import InvalidRequest
from ..sampling.schedule import (
    MAX_STEPS,
    MIN_STEPS,
    AnnealedSchedule,
    FittedSchedule,
    Schedule,
    Strategy,
    as_schedule,
    parse_steps,
    plan_schedule,
)


@dataclass(frozen=True)
class Limits:
    """The smallest and the largest valid value; with `open`, both are excluded."""

    low: float
    high: float
    open: bool = False

    def hold(self, value: float) -> bool:
        """Whether a value is valid; NaN is not."""
        if self.open:
            return self.low < value < self.high
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.open:
            return f"above {self.low:.10g} and below {self.high:.10g}"
        return (
            f"at least {self.low:.10g}"
            if math.isinf(self.high)
            else f"{self.low:.10g} to {self.high:.10g}"
        )


def about(
    kind: type[Any],
    help: str,
    *,
    limits: Limits | None = None,
    aliases: tuple[str, ...] = (),
    metavar: str | None = None,
) -> dict[str, Any]:
    """The metadata of an option's field.

    Args:
        kind: type of its value; the members of a StrEnum are its choices.
        limits: valid range of a number.
        aliases: further flags besides `--name`.
        metavar: placeholder for its value in `--help`.
    """
    return {
        "kind": kind,
        "help": help,
        "limits": limits,
        "choices": [str(choice) for choice in kind] if issubclass(kind, StrEnum) else None,
        "aliases": aliases,
        "metavar": metavar,
    }


def check_value(name: str, metadata: Mapping[str, Any], value: Any) -> Any:
    """Convert a value to the type of its option, and check it.

    Args:
        metadata: of the option's field.

    Raises:
        InvalidRequest: the value is not valid.
    """
    called = name.replace("num_", "number of ").replace("_", " ")
    if metadata["choices"] is not None:
        if value not in metadata["choices"]:
            raise InvalidRequest(
                f"the {called} must be one of {', '.join(metadata['choices'])}, "
                f"not {str(value)[:80]!r}"
            )
        return metadata["kind"](value)
    limits = metadata["limits"]
    if limits is None:
        if metadata["kind"] is not str:
            return value
        words = value if isinstance(value, str) else _number(int, value)
        if words is None:
            raise InvalidRequest(f"the {called} must be text, not {str(value)[:80]!r}")
        return str(words)
    number = _number(metadata["kind"], value)
    if number is None or not limits.hold(number):
        raise InvalidRequest(
            f"the {called} must be {_kind_of(metadata)}{limits}, not {str(value)[:80]}"
        )
    return number


def _kind_of(metadata: Mapping[str, Any]) -> str:
    return "a whole number, " if metadata["kind"] is int else ""


def _number(kind: type[Any], value: Any) -> Any:
    """The value as an int or a float; None if it is not a number."""
    if isinstance(value, bool | str):
        return None
    try:
        return operator.index(value) if kind is int else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The options that every family has.

    Attributes:
        ADAPTIVE_TOLERANCE: the tolerance of the strategy "adaptive" if no tolerance is set.

    Raises:
        InvalidRequest: a value is not valid, alone or together with the others.
    """

    ADAPTIVE_TOLERANCE: ClassVar[float] = 0.05

    steps: str = field(
        default="50:5",
        metadata=about(
            str,
            "Denoising steps of the first and of the last AR iteration, such as 50:5.",
            metavar="UPPER:LOWER",
        ),
    )
    strategy: Strategy = field(
        default=Strategy.LINEAR,
        metadata=about(
            Strategy,
            "How the steps decrease from UPPER to LOWER; adaptive also skips steps that a token "
            "does not need, constant takes LOWER throughout, fixed takes UPPER throughout, as "
            "without DiSA.",
        ),
    )
    schedule: Schedule | None = field(
        default=None,
        metadata=about(
            Path,
            "Schedule file of disa-calibrate, instead of --steps and --strategy: steps of each AR "
            "iteration, and possibly its tokens and the full passes.",
            metavar="FILE",
        ),
    )
    guidance_scale: float = field(
        default=1.0,
        metadata=about(
            float,
            "Scale of classifier-free guidance; 1 turns it off.",
            limits=Limits(0, 1000, open=True),
            aliases=("--cfg",),
        ),
    )
    tolerance: float | None = field(
        default=None,
        metadata=about(
            float,
            "Skip steps while a token's prediction changes less than this between two denoising "
            "steps; by default 0, which skips none, and with --strategy adaptive 0.05, for FlowAR "
            "0.01.",
            limits=Limits(0, 10),
        ),
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.default is None:
                continue
            if each.name == "schedule":
                value = as_schedule(value)
            else:
                value = check_value(each.name, each.metadata, value)
            object.__setattr__(self, each.name, value)
        if self.tolerance is None:
            adaptive = self.schedule is None and self.strategy is Strategy.ADAPTIVE
            object.__setattr__(self, "tolerance", self.ADAPTIVE_TOLERANCE if adaptive else 0.0)
        # A wrong step count is reported now instead of at the first image.
        _ = self.step_schedule

    @property
    def guided(self) -> bool:
        """Whether the unconditional half is computed."""
        return self.guidance_scale != 1

    @cached_property
    def step_schedule(self) -> Schedule:
        """The denoising steps of each AR iteration."""
        if self.schedule is not None:
            return self.schedule
        return AnnealedSchedule(*parse_steps(self.steps), self.strategy)

    def steps_of(self, iteration: int, iterations: int) -> int:
        """Nominal denoising steps of AR iteration `iteration` (from 0) of `iterations`.

        Raises:
            InvalidRequest: the schedule is an object of the caller that gives no step count.
        """
        steps = self.step_schedule.steps(iteration, iterations)
        name = f"the steps that the schedule gives for AR iteration {iteration + 1}"
        return whole_number(name, steps, MIN_STEPS, MAX_STEPS)

    def image_tokens(self, tokens: Mapping[str, Any]) -> int:
        """Number of tokens of an image with these options.

        Args:
            tokens: the section of the manifest, checked.
        """
        count: int = tokens["count"]
        return count

    def check_tokens(self, tokens: Mapping[str, Any]) -> None:
        """Check these options against the size of a model.

        Args:
            tokens: the section of the manifest, checked.

        Raises:
            InvalidRequest: a model with these tokens cannot have the options.
        """

    @classmethod
    def of(
        cls,
        family: str,
        tokens: Mapping[str, Any],
        defaults: Mapping[str, Any],
        overrides: Mapping[str, Any],
    ) -> Self:
        """The default options of a plan, replaced by those of a request, checked.

        Steps in the request replace a default schedule, and a schedule replaces default steps.

        Args:
            family: name of the family, for errors.
            tokens: the section of the manifest, checked.
            defaults: the options of the plan, from `plan_defaults`.
            overrides: the options of the request.

        Raises:
            InvalidRequest: the family does not have an option, or a value is not valid.
        """
        known = [each.name for each in fields(cls)]
        for layer, whose, advice in (
            (defaults, "the plan's defaults: ", "; export the checkpoint again"),
            (overrides, "", ""),
        ):
            if unknown := [name for name in layer if name not in known]:
                raise InvalidRequest(
                    f"{whose}a {family} model has no option {unknown[0]}: it has "
                    f"{', '.join(known)}{advice}"
                )
        replaced = [name for name in ("steps", "strategy") if name in overrides]
        if replaced and overrides.get("schedule") is not None:
            raise InvalidRequest(f"a schedule sets the steps: leave out {' and '.join(replaced)}")
        values = {**defaults, **overrides}
        if replaced:
            values.pop("schedule", None)
        if values.get("schedule") is not None:
            values = cls.of_schedule(family, values, overrides)
        options = cls(**values)
        options.check_tokens(tokens)
        return options

    @classmethod
    def of_schedule(
        cls, family: str, values: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Add the options that the schedule in `values` sets besides the steps.

        Args:
            family: name of the family, for errors.
            values: all options; those of the request replace those of the plan.
            overrides: the options of the request.

        Raises:
            InvalidRequest: the schedule sets something that is fixed in this family.
        """
        del overrides
        schedule = as_schedule(values["schedule"])
        if isinstance(schedule, FittedSchedule) and schedule.iterations is not None:
            raise InvalidRequest(
                "the schedule sets tokens or full passes of AR iterations, which are fixed in a "
                f"{family} model: give one that sets steps only"
            )
        return {**values, "schedule": schedule}

    def to_json(self) -> dict[str, Any]:
        """All options that determine how an image is generated, by name."""
        shown = {each.name: getattr(self, each.name) for each in fields(self)}
        shown["schedule"] = str(self.step_schedule)
        del shown["steps"], shown["strategy"]
        return {
            name: value if isinstance(value, int | float) else str(value)
            for name, value in shown.items()
        }


def plan_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The default options of a plan, which is an untrusted file, under their current names.

    Raises:
        DisaError: its schedule is not one, for example the name of a file.
    """
    found = canonical_defaults(defaults)
    if "schedule" in found:
        found["schedule"] = plan_schedule(found["schedule"])
    return found


def canonical_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's default options under their current names."""
    return {RENAMED.get(name, name): value for name, value in defaults.items()}
