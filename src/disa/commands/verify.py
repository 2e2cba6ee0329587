"""disa-verify: compares a plan with the implementation or checkpoint that it comes from."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from ..engines.open import ENGINES
from ..errors import DisaError
from ..exporter.verification import CheckpointReport, ReplayReport, verify
from ..runtime.replay.reference import Difference
from .command import DisaCommand


def print_replay(path: Path, differences: Sequence[Difference]) -> None:
    """Print a table for one reference: the error at each AR iteration and of the latents."""
    click.echo(f"\n{path}")
    click.echo("  iteration  head calls  relative error")
    for entry in differences:
        name = entry.what.removeprefix("iteration ")
        calls = "" if entry.head_calls is None else entry.head_calls
        click.echo(f"  {name:>9}  {calls:>10}  {entry.relative:>14.2e}")


@click.command(
    cls=DisaCommand,
    epilog="Examples:\n\n\b\n"
    "  disa-verify engines/mar_b.plan --reference linear.npz --reference ddim.npz\n"
    "  disa-verify engines/mar_b.plan --against mar_b.pth --vae kl16.ckpt",
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    "references",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Recorded run of the official implementation (.npz); may be repeated.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Checkpoint that the plan was made from; each graph is compared with it (needs PyTorch).",
)
@click.option(
    "--vae",
    type=click.Path(path_type=Path),
    help="VAE that the plan was made with, for --against.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="JSON file with sizes that tensors do not determine, for --against.",
)
@click.option(
    "--weights",
    metavar="KEY",
    help="Key of the weights in the checkpoint [those that the plan was made from].",
)
@click.option(
    "--tolerance",
    type=float,
    help="Largest relative error allowed [1e-4; with --against it depends on the precision].",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="cpu",
    show_default=True,
    help="Engine of the graphs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(
    plan: Path,
    references: tuple[Path, ...],
    against: Path | None,
    vae: Path | None,
    config: Path | None,
    weights: str | None,
    tolerance: float | None,
    engine: str,
    as_json: bool,
) -> None:
    """Compare PLAN with recorded runs of the official implementation, or with its checkpoint.

    For a recorded run, the plan's graphs are run with the recorded random numbers, and the tokens
    of every AR iteration and the final latents are compared. The exit code is 1 if any error
    exceeds the tolerance.
    """
    if not references and not against:
        raise click.UsageError("give --reference FILE, or --against CHECKPOINT")
    for option, value in (("--vae", vae), ("--config", config), ("--weights", weights)):
        if value is not None and against is None:
            raise click.UsageError(f"{option} belongs to --against CHECKPOINT: leave it out")
    result = verify(
        plan,
        references=references,
        against=against,
        vae=vae,
        config=config,
        weights=weights,
        engine=engine,
        tolerance=tolerance,
    )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=1))
    else:
        if result.checkpoint is not None:
            print_checkpoint(result.checkpoint)
        if result.recorded is not None:
            print_recorded(result.recorded)
    if not result.passed:
        failed = [part for part in (result.checkpoint, result.recorded) if part and not part.passed]
        kinds = {CheckpointReport: "its checkpoint", ReplayReport: "the recorded runs"}
        raise DisaError(
            f"{plan} differs from "
            + " and from ".join(
                f"{kinds[type(part)]} by {part.worst:.2e}, where {part.tolerance:.0e} is allowed"
                for part in failed
            )
        )


def print_recorded(report: ReplayReport) -> None:
    """Print a table for each recorded run, and the verdict."""
    click.echo(report.engine)
    for path, differences in report.differences.items():
        print_replay(path, differences)
    count = len(report.differences)
    click.echo(
        f"\n{verdict(report.passed)}: worst relative error {report.worst:.2e} over {count} "
        f"reference{'' if count == 1 else 's'} (tolerance {report.tolerance:.0e})"
    )


def print_checkpoint(report: CheckpointReport) -> None:
    """Print a line for each graph and batch size, and the verdict."""
    compared = report.compared
    kind = "averaged" if compared.averaged else "not averaged"
    other = "" if compared.same_file else "; not the file that the plan was made from"
    click.echo(f"weights {compared.weights} ({kind}){other}")
    if compared.ignored.tensors:
        names = ", ".join(compared.ignored.tensors[:3])
        click.echo(f"ignored {len(compared.ignored.tensors)} tensors, such as {names}")
    click.echo("graph       relative error  batched or alone  sizes")
    for entry in compared.comparisons:
        sizes = ", ".join(f"{name} {size}" for name, size in entry.sizes.items())
        click.echo(f"{entry.graph:<10}  {entry.relative:>14.1e}  {entry.alone:>19.1e}  {sizes}")
    click.echo(
        f"{verdict(report.passed)}: worst relative error {report.worst:.1e} "
        f"(tolerance {report.tolerance:.0e})"
    )


def verdict(passed: bool) -> str:
    """The first word of the last line."""
    return "passed" if passed else "FAILED"


if __name__ == "__main__":
    main()
