"""disa-verify: compares a plan with the implementation it came from."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..cli import DisaCommand
from ..engines.open import ENGINES
from ..errors import DisaError, MissingDependency
from .flow_reference import replay_flow
from .masked_reference import replay_harmon, replay_mar
from .pipeline import Pipeline
from .reference import Difference, Reference

TOLERANCE = 1e-4
REPLAYS: Mapping[str, Callable[[Pipeline, Reference], list[Difference]]] = {
    "mar": replay_mar,
    "harmon": replay_harmon,
    "flowar": replay_flow,
    "xar": replay_flow,
}


def print_replay(path: Path, differences: list[Difference]) -> None:
    """A table of one reference: the error at each AR iteration and of the latents."""
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
    help="A recorded run of the official implementation (.npz); may be repeated.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="The checkpoint the plan was made from: compare each graph with it (needs PyTorch).",
)
@click.option("--vae", type=click.Path(path_type=Path), help="The VAE the plan was made with.")
@click.option(
    "--config", type=click.Path(path_type=Path), help="Sizes that the tensors do not tell (JSON)."
)
@click.option(
    "--tolerance",
    type=float,
    help="Largest relative error allowed (1e-4; with --against what the plan's precision allows).",
)
@click.option("--engine", type=click.Choice(ENGINES), default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(
    plan: Path,
    references: tuple[Path, ...],
    against: Path | None,
    vae: Path | None,
    config: Path | None,
    tolerance: float | None,
    engine: str,
    as_json: bool,
) -> None:
    """Compare PLAN with recorded runs of the official implementation, or with its checkpoint.

    The recorded random numbers are fed through the plan's graphs, and the tokens of every AR
    iteration and the final latents are compared. The exit code is 1 if anything differs by
    more than the tolerance.
    """
    if not references and not against:
        raise click.UsageError("give --reference FILE, or --against CHECKPOINT")
    allowed = TOLERANCE if tolerance is None else tolerance
    if against:
        # The one place where the runtime needs PyTorch, and only for this option.
        try:
            from ..exporter.against import compare_with_checkpoint, report
        except ImportError as error:
            raise MissingDependency(error.name or "torch", "export") from error
        report(*compare_with_checkpoint(plan, against, vae, config, engine), tolerance, as_json)
    if not references:
        return
    pipe = Pipeline.from_plan(plan, engine, exact=True)
    replay = REPLAYS[pipe.plan.manifest.family]
    summary_json: dict[str, Any] = {"engine": pipe.engine, "tolerance": allowed, "references": {}}
    if not as_json:
        click.echo(pipe.engine)
    worst = 0.0
    for path in references:
        found = replay(pipe, Reference(path))
        worst = max(worst, *(entry.relative for entry in found))
        summary_json["references"][str(path)] = [asdict(entry) for entry in found]
        if not as_json:
            print_replay(path, found)
    summary = f"worst relative error {worst:.2e} over {len(references)} reference" + (
        "s" if len(references) > 1 else ""
    )
    passed = worst <= allowed
    if as_json:
        click.echo(json.dumps({**summary_json, "worst": worst, "passed": passed}, indent=1))
    else:
        click.echo(f"\n{'passed' if passed else 'FAILED'}: {summary} (tolerance {allowed:.0e})")
    if not passed:
        raise DisaError(
            f"{plan} differs from the reference: {summary}, and {allowed:.0e} is allowed"
        )
