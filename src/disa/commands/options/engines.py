"""The options of commands that build TensorRT engines."""

from collections.abc import Callable
from typing import Any

import click

from ...engines.gpu import profile
from ...engines.tensorrt.build import parse_gpus
from ...errors import DisaError


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a command that builds engines; see `EngineOptions.from_command`."""
    options = [
        click.option(
            "--engine",
            type=click.Choice(["auto", "tensorrt", "tensorrt-rtx", "onnxruntime"]),
            default="auto",
            show_default=True,
            help="Builder of the engines; onnxruntime builds none.",
        ),
        click.option(
            "--gpu",
            "gpus",
            callback=_parsed(parse_gpus, ()),
            metavar="sm_89,sm_120",
            help="GPU architectures to build for.  [default: that of this machine's GPU; without "
            "a GPU, sm_80,sm_86,sm_89,sm_120 for tensorrt-rtx]",
        ),
        click.option(
            "--batch-size",
            "batch",
            default="1:8:64",
            show_default=True,
            callback=_parsed(profile.Range.parse, None),
            metavar="MIN:USUAL:MAX",
            help="Images in a batch of the engine, which is fastest at USUAL.",
        ),
        click.option(
            "--workspace",
            type=click.IntRange(min=1),
            metavar="MIB",
            help="Device memory that a kernel may use while it runs, in MiB.  [default: all]",
        ),
        click.option(
            "--optimization-level",
            type=click.IntRange(0, 5),
            help="0 builds fastest, 5 runs fastest.  [default: TensorRT's own]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _parsed(parse: Callable[[str], Any], absent: Any) -> Callable[..., Any]:
    """A callback that parses an option; a value that cannot be parsed is a usage error."""

    def callback(_ctx: click.Context, _param: click.Parameter, text: str | None) -> Any:
        try:
            return absent if text is None else parse(text)
        except DisaError as error:
            raise click.BadParameter(str(error)) from error

    return callback
