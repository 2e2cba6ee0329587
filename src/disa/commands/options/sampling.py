"""Sampling options under the same names in every command, made from the families' dataclasses."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from ...errors import DisaError
from ...runtime.families.options import check_value
from ...runtime.families.registry import OPTIONS

Command = TypeVar("Command", bound=Callable[..., Any])

HOW = "How to generate"
TITLES = {"mar": "MAR", "flowar": "FlowAR", "xar": "xAR", "harmon": "Harmon"}


class OptionValue(click.ParamType):
    """A value that is valid for the option of some family."""

    def __init__(self, name: str, about: Mapping[str, Any]) -> None:
        self.option, self.about = name, about
        kind = {int: "integer", float: "number"}.get(about["kind"], "text")
        self.name = about["metavar"] or kind

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The checked value; a value that is not valid is a usage error."""
        number = self._number(value)
        try:
            return check_value(self.option, self.about, value if number is None else number)
        except DisaError as error:
            self.fail(str(error), param, ctx)

    def _number(self, value: Any) -> Any:
        kind = self.about["kind"]
        if kind not in (int, float) or not isinstance(value, str):
            return None
        try:
            return kind(value)
        except ValueError:
            return None


class SamplingOption(click.Option):
    """A flag in the help's group of sampling options."""

    group = HOW


def sampling_options(command: Command) -> Command:
    """Add the sampling options of all families; each is None by default."""
    return sampling_options_without()(command)


def sampling_options_without(*names: str) -> Callable[[Command], Command]:
    """Add the sampling options except some, for a command that has its own flags for these."""

    def add(command: Command) -> Command:
        for each in reversed(list(all_options().values())):
            if each.name not in names:
                command = _flag(each)(command)
        return command

    return add


def all_options() -> dict[str, Field[Any]]:
    """The options of all families, without duplicates."""
    found: dict[str, Field[Any]] = {}
    for kind in OPTIONS.values():
        for each in fields(kind):
            found.setdefault(each.name, each)
    return found


def flags_of(name: str) -> Collection[str]:
    """All flags of an option."""
    return (f"--{name.replace('_', '-')}", *all_options()[name].metadata["aliases"])


def families_with(name: str) -> str:
    """The families that have an option, for its help; empty if all have it."""
    having = [
        TITLES.get(family, family)
        for family, kind in OPTIONS.items()
        if name in {each.name for each in fields(kind)}
    ]
    return "" if len(having) == len(OPTIONS) else f" ({', '.join(having)})"


def _flag(each: "Field[Any]") -> Callable[[Command], Command]:
    about = each.metadata
    kind: click.ParamType
    if about["choices"] is not None:
        kind = click.Choice(about["choices"])
    elif about["kind"] is Path:
        kind = click.Path(path_type=Path)
    else:
        kind = OptionValue(each.name, about)
    return click.option(
        *flags_of(each.name),
        each.name,
        cls=SamplingOption,
        type=kind,
        metavar=about["metavar"],
        help=about["help"].removesuffix(".") + families_with(each.name) + ".",
    )
