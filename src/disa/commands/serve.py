"""disa-serve: serves plans over HTTP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..engines.open import ENGINES
from ..errors import MissingDependency
from ..server.settings import SETTABLE, ServerSettings
from .command import DisaCommand
from .options.sampling import OptionValue

Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(command: Command) -> Command:
    """Add a flag for each setting of the server."""
    for name, each in reversed(SETTABLE.items()):
        about = each.metadata
        choices = about["choices"]
        command = click.option(
            f"--{name.replace('_', '-')}",
            type=click.Choice(choices) if choices else OptionValue(name, about),
            metavar=about["metavar"],
            default=each.default,
            show_default=each.default is not None,
            help=about["help"],
        )(command)
    return command


@click.command(
    cls=DisaCommand,
    epilog="Examples:\n\n\b\n"
    "  disa-serve engines/mar_b.plan\n"
    "  disa-serve engines/mar_b.plan engines/harmon.plan --port 9000 --api-key-file keys\n\n\b\n"
    "  curl http://127.0.0.1:8000/v1/images/generations -H 'content-type: application/json' "
    '-d \'{"prompt": "207"}\'',
)
@click.argument("plans", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 selects a free one.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="Engine of the graphs; auto selects the fastest one for batches of changing size.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with one API key a line; without it, clients need no key.",
)
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Origin of web pages that may use the API; may be repeated.",
)
@server_options
def main(
    plans: tuple[Path, ...],
    engine: str,
    threads: int | None,
    api_key_file: Path | None,
    **settings: Any,
) -> None:
    """Serve PLANS through OpenAI's images API, with a web page at /.

    New requests join the running images between AR iterations. Logs are JSON lines on stderr.
    After the first SIGTERM or Ctrl-C the running images finish; a second one stops at once.
    """
    try:
        from ..server.http.auth import read_keys
        from ..server.run import serve_plans
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "fastapi", "serve") from error
    keys = read_keys(api_key_file) if api_key_file else ()
    serve_plans(plans, engine, threads, ServerSettings(api_keys=keys, **settings))
