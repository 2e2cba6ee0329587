from collections.abc import Callable

import click
from click.testing import CliRunner

from disa.commands.options.engines import engine_options
from disa.engines.gpu.profile import Range
from disa.engines.tensorrt.build import EngineOptions


def run(command: Callable[..., None], *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(click.command()(engine_options(command)), arguments)
    return result.exit_code, result.output


def test_options_of_a_command() -> None:
    def command(**options: object) -> None:
        click.echo(repr(EngineOptions.from_command(**options)))  # type: ignore[arg-type]

    assert run(command) == (0, f"{EngineOptions()!r}\n")
    given = run(
        command,
        *("--gpu", "sm_89,sm_120", "--engine", "tensorrt-rtx", "--batch-size", "2:4:8"),
        *("--workspace", "512", "--optimization-level", "5"),
    )
    wanted = EngineOptions("tensorrt-rtx", (89, 120), Range(2, 4, 8), 512 << 20, 5)
    assert given == (0, f"{wanted!r}\n")
    assert run(command, "--engine", "onnxruntime") == (0, "None\n")
    for arguments, text in (
        (("--gpu", "rtx"), "not a GPU architecture"),
        (("--batch-size", "0"), "not a batch size"),
        (("--optimization-level", "6"), "0<=x<=5"),
    ):
        code, output = run(command, *arguments)
        assert code == 2
        assert text in output
