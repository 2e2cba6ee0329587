"""The groups of options in the help."""

import click
from click.testing import CliRunner

from disa.commands.options.groups import OTHER, OUTPUT, WHAT, GroupedCommand
from disa.commands.options.sampling import HOW, sampling_options


@click.command(cls=GroupedCommand, groups={WHAT: ("num",), OUTPUT: ("output",)})
@click.option("--output", help="The place.")
@click.option("--num", help="The number.")
@click.option("--extra", help="In no group.")
@sampling_options
def command(**_: object) -> None:
    """Do something."""


def test_options_are_shown_in_their_groups() -> None:
    text = CliRunner().invoke(command, ["--help"]).output
    titles = [f"{title}:" for title in (WHAT, HOW, OUTPUT, OTHER)]
    places = [text.index(title) for title in titles]
    assert places == sorted(places), "sampling options come after the first group"
    sections = [text[start:end] for start, end in zip(places, [*places[1:], None], strict=True)]
    for option, section in zip(("--num", "--steps", "--output", "--extra"), sections, strict=True):
        assert option in section
