"""The quantisation options of disa-export."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...calibration.quantization.options import IMAGES, SPREAD_TOLERANCE, TOKEN_TOLERANCE


def quantization_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that quantises."""
    options = (
        click.option(
            "--calibration-images",
            type=click.IntRange(1),
            default=IMAGES,
            show_default=True,
            help="Images generated to find the ranges, for --int8 and --fp8.",
        ),
        click.option(
            "--token-tolerance",
            type=click.FloatRange(0, min_open=True),
            default=TOKEN_TOLERANCE,
            show_default=True,
            help="Largest distance of tokens sampled with the quantised and with the fp32 graphs "
            "from the same state, in standard deviations.",
        ),
        click.option(
            "--spread-tolerance",
            type=click.FloatRange(0, min_open=True),
            default=SPREAD_TOLERANCE,
            show_default=True,
            help="Largest relative change of these tokens' standard deviation.",
        ),
        click.option(
            "--prompt",
            "prompts",
            multiple=True,
            help="Text prompt for the calibration images; may be repeated.",
        ),
        click.option(
            "--prompt-file",
            type=click.Path(path_type=Path),
            help="File of prompts for the calibration images: one a line, or .json, .jsonl.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
