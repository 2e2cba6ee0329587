"""The options of disa-export that are about quantising."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

IMAGES = 16
TOKEN_TOLERANCE = 0.1
SPREAD_TOLERANCE = 0.015


def quantization_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a command that quantises."""
    options = (
        click.option(
            "--calibration-images",
            type=click.IntRange(1),
            default=IMAGES,
            show_default=True,
            help="Images drawn to find the ranges for --int8 and --fp8.",
        ),
        click.option(
            "--token-tolerance",
            type=click.FloatRange(0, min_open=True),
            default=TOKEN_TOLERANCE,
            show_default=True,
            help="Largest distance between tokens drawn in fp32 and quantised from the same "
            "state, in standard deviations.",
        ),
        click.option(
            "--spread-tolerance",
            type=click.FloatRange(0, min_open=True),
            default=SPREAD_TOLERANCE,
            show_default=True,
            help="Largest change of those tokens' standard deviation, as a share of it.",
        ),
        click.option(
            "--prompt", "prompts", multiple=True, help="Text to calibrate on; may be repeated."
        ),
        click.option(
            "--prompt-file",
            type=click.Path(path_type=Path),
            help="Texts to calibrate on, one a line.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
