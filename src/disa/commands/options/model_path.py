"""A model file: on this machine, or by name on the Hugging Face hub."""

from pathlib import Path
from typing import Any

import click

from ...errors import DisaError
from ...hub import fetch_checkpoint, is_hub_name


class ModelPath(click.ParamType):
    """A path; hf://organisation/repository[@revision][/file] is fetched into the hub's cache."""

    name = "path"

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        if not is_hub_name(str(value)):
            return Path(value)
        try:
            return fetch_checkpoint(value)
        except DisaError as error:
            raise _NotFetched(ctx.info_name if ctx else "disa", str(error)) from error


class _NotFetched(click.ClickException):
    """Shown in the same form as all errors."""

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self._command = command

    def show(self, file: Any = None) -> None:
        click.echo(f"{self._command}: {self.message}", err=True)
