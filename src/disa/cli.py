"""What every disa command shares: error reporting, exit codes, progress bars."""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from tqdm import tqdm

from . import __version__
from .errors import DisaError

EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130


class DisaCommand(click.Command):
    """A command whose failures are one sentence and a non-zero exit code.

    Exit codes: 0 done, 1 failure, 2 wrong usage (click's own), 130 interrupted.
    `--debug` shows the traceback behind the sentence.
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except DisaError as error:
            raise click.UsageError(str(error), ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DisaError as error:
            _fail(ctx, str(error), EXIT_FAILURE)
        except KeyboardInterrupt:
            _fail(ctx, "interrupted; files that were complete are kept", EXIT_INTERRUPTED)
        except MemoryError:
            _fail(ctx, "not enough memory: use a smaller --batch-size", EXIT_FAILURE)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            _fail(ctx, f"{error.strerror or error}{where}", EXIT_FAILURE)


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


@contextmanager
def progress_bar(total: int, description: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar that is advanced by calling what it yields; none if stderr is no terminal."""
    with tqdm(total=total, desc=description, unit=unit, disable=not sys.stderr.isatty()) as bar:
        yield lambda count: bar.update(count) and None
