"""Base of all disa commands: error reporting and exit codes."""

import sys
import traceback
import warnings
from collections.abc import Collection
from typing import Any

import click
from click.core import ParameterSource

from .. import __version__
from ..errors import DisaError
from ..optional import is_memory_failure
from .interrupt import EXIT_INTERRUPTED, INTERRUPTS, SENTENCE
from .terminal import OutputClosed, fill_closed_descriptors, plain_streams

EXIT_FAILURE = 1
EXIT_OUTPUT_CLOSED = 141
"""What a shell reports for a program that the signal SIGPIPE ended."""
NO_MEMORY = "not enough memory: use a smaller --batch-size"


class DisaCommand(click.Command):
    """A command that reports a failure as one sentence and a non-zero exit code.

    Exit codes: 0 success, 1 failure, 2 wrong usage (from click), 130 interrupted, 141 if the reader
    of the output has closed it, which is not reported.
    `--debug` shows the traceback of an error.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=_remember_debug,
                help="Show the traceback of an error.",
            )
        )
        self.params.append(version_option())

    def main(self, *args: Any, **kwargs: Any) -> Any:
        fill_closed_descriptors()
        with INTERRUPTS.handled(), plain_streams(), warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            try:
                return super().main(*args, **kwargs)
            except OutputClosed:
                sys.exit(EXIT_OUTPUT_CLOSED)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except DisaError as error:
            raise click.UsageError(str(error), ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail(ctx, SENTENCE, EXIT_INTERRUPTED)
        except click.exceptions.Exit:
            raise
        except Exception as error:
            # Libraries that are being imported turn a Ctrl-C into other errors.
            if INTERRUPTS.recently():
                _fail(ctx, SENTENCE, EXIT_INTERRUPTED)
            sentence = _sentence(error)
            if sentence is None:
                raise
            _fail(ctx, sentence, EXIT_FAILURE)


def refuse_options(names: Collection[str | None], why: str) -> None:
    """Refuse options that would have no effect.

    Raises:
        click.UsageError: such an option is on the command line.
    """
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in names:
            raise click.UsageError(f"{why}: leave out {option.opts[0]}")


def _sentence(error: Exception) -> str | None:
    """The message for the user; None for a bug in disa and for click's own errors."""
    if isinstance(error, DisaError):
        return str(error)
    if is_memory_failure(error):
        return NO_MEMORY
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}"
    return None


def version_option() -> click.Option:
    """The eager `--version` flag."""

    def show(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            click.echo(f"disa {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version.",
    )


def _remember_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta["disa.debug"] = value


def _fail(ctx: click.Context, message: str, code: int) -> None:
    if ctx.meta.get("disa.debug"):
        traceback.print_exc()
    click.echo(f"{ctx.info_name}: {message}", err=True)
    ctx.exit(code)
