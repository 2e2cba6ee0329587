"""The families that can be run, and the sampling options of each."""

from collections.abc import Mapping
from typing import Any

from ...engines.plan.plan import Plan
from ...errors import DisaError, InvalidRequest
from ..generation import Family
from ..sampling.schedule import FittedSchedule, schedule_content
from .family import BaseFamily, Sessions
from .flow.flowar import FlowARFamily, FlowAROptions
from .flow.options import FlowOptions
from .flow.xar import XARFamily
from .masked.harmon import HarmonFamily, HarmonOptions
from .masked.mar import MARFamily
from .masked.options import MaskedOptions
from .options import SamplingOptions, canonical_defaults
from .signatures import check_signature

FAMILIES: Mapping[str, type[BaseFamily[Any]]] = {
    "mar": MARFamily,
    "flowar": FlowARFamily,
    "xar": XARFamily,
    "harmon": HarmonFamily,
}
OPTIONS: Mapping[str, type[SamplingOptions]] = {
    "mar": MaskedOptions,
    "flowar": FlowAROptions,
    "xar": FlowOptions,
    "harmon": HarmonOptions,
}


def open_family(plan: Plan, sessions: Sessions) -> Family[Any]:
    """Load a plan's model.

    Raises:
        DisaError: the family is not known, or a graph or a count does not fit it.
    """
    name = plan.manifest.family
    if name not in FAMILIES:
        raise DisaError(
            f"{plan.path} has a model of the family {name}, but this disa knows "
            f"{', '.join(FAMILIES)}: update disa"
        )
    family = FAMILIES[name]
    check_signature(plan, family.signature(plan))
    return family(plan, sessions)


def checked_defaults(
    family: str,
    tokens: Mapping[str, Any],
    defaults: Mapping[str, Any],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """The default options of a plan, in the form of its manifest.

    Args:
        tokens: the section of the manifest.
        defaults: the default options of the model.
        overrides: the options of the export; None leaves an option as it is.

    Raises:
        InvalidRequest: the family does not have an option, or a value is not valid.
    """
    own = canonical_defaults(defaults)
    given = {name: value for name, value in overrides.items() if value is not None}
    options = OPTIONS[family].of(family, tokens, own, given)
    # Values of other libraries, such as NumPy's, become plain ones.
    chosen = {name: _plain(getattr(options, name)) for name in given if name != "schedule"}
    if "schedule" in given:
        if not isinstance(options.schedule, FittedSchedule):
            raise InvalidRequest("a plan's schedule must list the steps of each AR iteration")
        chosen["schedule"] = schedule_content(options.schedule)
        if options.schedule.iterations is not None:
            chosen["num_iterations"] = options.schedule.iterations
    return {**own, **chosen}


def _plain(value: Any) -> Any:
    """A checked value as JSON has it."""
    return value if isinstance(value, int | float) else str(value)
