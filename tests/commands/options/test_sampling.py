from dataclasses import fields

import click
import pytest
from click.testing import CliRunner

from disa.commands import bench, calibrate, evaluate, export, inspect, run, serve, verify
from disa.commands.options.sampling import all_options, flags_of, sampling_options
from disa.runtime.families.registry import OPTIONS


@click.command()
@sampling_options
def show(**sampling: object) -> None:
    given = {name: value for name, value in sampling.items() if value is not None}
    click.echo(repr(given))


def test_every_option_of_every_family_has_a_flag() -> None:
    names = {param.name for param in show.params}
    assert names == {each.name for kind in OPTIONS.values() for each in fields(kind)}
    assert flags_of("guidance_scale") == ("--guidance-scale", "--cfg")
    assert flags_of("num_iterations") == ("--num-iterations", "--iterations")
    assert flags_of("guidance_schedule") == ("--guidance-schedule", "--cfg-schedule")


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        (["--cfg", "2"], {"guidance_scale": 2.0}),
        (["--guidance-scale", "1e1"], {"guidance_scale": 10.0}),
        (["--iterations", "7"], {"num_iterations": 7}),
        (["--size", "512"], {"size": "512"}),
        (["--steps", "9:3", "--temperature", "0"], {"steps": "9:3", "temperature": 0.0}),
        ([], {}),
    ],
)
def test_values_have_the_option_s_type(arguments: list[str], given: dict[str, object]) -> None:
    result = CliRunner().invoke(show, arguments)
    assert result.output.strip() == repr(given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cfg", "nan"], "the guidance scale must be above 0 and below 1000, not nan"),
        (["--cfg", "much"], "the guidance scale must be above 0 and below 1000, not much"),
        (
            ["--iterations", "2.5"],
            "number of iterations must be a whole number, at least 1, not 2.5",
        ),
        (["--guidance-interval", "2"], "the guidance interval must be 0 to 1, not 2.0"),
    ],
)
def test_impossible_values_are_a_usage_error(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(show, arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


HOW = "How to generate"


@pytest.mark.parametrize(
    ("command", "first", "second"),
    [
        (run.main, "What to generate", HOW),
        (export.main, "What to export", "Default options of the plan"),
        (bench.main, "What to measure", HOW),
        (calibrate.main, "What to generate", HOW),
    ],
)
def test_help_stands_in_groups(command: click.Command, first: str, second: str) -> None:
    text = CliRunner().invoke(command, ["--help"], terminal_width=100).output
    places = [text.index(f"\n{group}:") for group in (first, second)]
    places += [text.index(f"\n{group}:") for group in ("Engine", "Output", "Other options")]
    assert places == sorted(places) or command is calibrate.main
    assert places[1] < text.index("--guidance-scale, --cfg") < places[2]
    shown = [option for param in command.params for option in param.opts if option[:2] == "--"]
    assert all(option in text for option in shown)
    other = text[text.index("\nOther options:") :]
    named = {line.split()[0] for line in other.splitlines() if line.startswith("  -")}
    assert named <= {"--debug", "--version", "--help", "--metrics-json", "--log-level"}


def test_help_names_the_families_that_have_an_option() -> None:
    text = " ".join(CliRunner().invoke(show, ["--help"]).output.split())
    assert "only ddpm adds noise (MAR, Harmon)." in text
    assert "1 guides all steps (FlowAR)." in text
    assert "1 turns it off." in text


@pytest.mark.parametrize(
    "command",
    [module.main for module in (bench, calibrate, evaluate, export, inspect, run, serve, verify)],
    ids=lambda command: command.name,
)
def test_every_option_has_a_help(command: click.Command) -> None:
    options = [param for param in command.params if isinstance(param, click.Option)]
    assert [option.name for option in options if not option.help] == []


def test_metadata_reach_the_help() -> None:
    text = " ".join(CliRunner().invoke(show, ["--help"]).output.split())
    for each in all_options().values():
        assert " ".join(each.metadata["help"].split()[:4]) in text
