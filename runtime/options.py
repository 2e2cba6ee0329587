"""Sampling options under the same names in every command."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from .sampler import SamplerName
from .schedule import Strategy
from .settings import GuidanceSchedule

Command = TypeVar("Command", bound=Callable[..., Any])

LENGTH_OPTIONS = (
    click.option(
        "--iterations",
        type=click.IntRange(1),
        help="AR iterations of an image, at most its number of tokens.",
    ),
    click.option(
        "--steps",
        metavar="UPPER:LOWER",
        help="Denoising steps of the first and of the last AR iteration, such as 50:5.",
    ),
    click.option(
        "--schedule",
        type=click.Path(path_type=Path),
        help="Steps of each AR iteration from a file of disa-calibrate, instead of --steps and "
        "--strategy.",
    ),
)
OTHER_OPTIONS = (
    click.option(
        "--strategy",
        type=click.Choice([strategy.value for strategy in Strategy]),
        help="How the steps fall from upper to lower; constant takes the lower count throughout, "
        "fixed the upper one over all timesteps, as without DiSA.",
    ),
    click.option("--sampler", type=click.Choice([name.value for name in SamplerName])),
    click.option("--cfg", type=float, help="Guidance scale; 1 is no guidance."),
    click.option(
        "--cfg-schedule",
        type=click.Choice([schedule.value for schedule in GuidanceSchedule]),
        help="Whether the guidance scale grows as tokens become known.",
    ),
    click.option("--temperature", type=float, help="Scales the noise of each denoising step."),
    click.option(
        "--guidance-interval",
        type=click.FloatRange(0, 1),
        help="Latest flow time at which FlowAR guides; 1 is always.",
    ),
    click.option("--size", help="Pixels, 512 or 640x384 (width x height), for Harmon."),
)


def sampling_options(command: Command) -> Command:
    """Add the sampling options; each is None where it is not given."""
    return _add(LENGTH_OPTIONS + OTHER_OPTIONS, command)


def other_sampling_options(command: Command) -> Command:
    """Add those beside --iterations and --steps, for a command that takes several of these."""
    return _add(OTHER_OPTIONS, command)


def _add(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command
