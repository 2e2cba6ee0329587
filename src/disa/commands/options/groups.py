"""A command whose `--help` shows its options in groups."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..command import DisaCommand
from .sampling import HOW

WHAT, ENGINE, OUTPUT = "What to generate", "Engine", "Output"
OTHER = "Other options"


class GroupedCommand(DisaCommand):
    """Shows options in groups: what to generate, how, the engine, the output, and others.

    Args:
        groups: names of options by group, in the order of the help; the sampling options form
            a separate group, after the first one.
        how: title of the group of sampling options.
    """

    def __init__(
        self,
        *args: Any,
        groups: Mapping[str, Sequence[str]] | None = None,
        how: str = HOW,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.groups = groups or {}
        self.how = how

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        group_of = {name: group for group, names in self.groups.items() for name in names}
        first, *others = (*self.groups, OTHER)
        order = [first, *([] if HOW in others else [HOW]), *others]
        rows: dict[str, list[tuple[str, str]]] = {group: [] for group in order}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                group = group_of.get(param.name or "", getattr(param, "group", OTHER))
                rows[group].append(record)
        for group, records in rows.items():
            if records:
                with formatter.section(self.how if group == HOW else group):
                    formatter.write_dl(records)
