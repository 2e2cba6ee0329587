"""disa-export: makes a plan from a checkpoint."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..cli import DisaCommand
from ..engines.build import (
    BuiltEngine,
    EngineOptions,
    add_engines,
    check_engines,
    engine_options,
    engines_by_default,
)
from ..engines.gpu.profile import Range
from ..engines.manifest import QUANTIZED
from ..errors import DisaError, MissingDependency
from ..runtime.labels import read_labels
from ..runtime.options import sampling_options
from ..runtime.schedule import AnnealedSchedule, parse_steps, read_schedule, schedule_content
from .quantization_options import quantization_options

if TYPE_CHECKING:
    from .export import Exported

PLAN_SUFFIX = ".plan"


@click.command(
    cls=DisaCommand,
    epilog="Examples:\n\n\b\n"
    "  disa-export mar_b.pth --vae kl16.ckpt --fp16\n"
    "  disa-export checkpoint-last.pth --config architecture.json -o engines/small.plan\n"
    "  disa-export mar_b.pth --int8 --calibration-images 32\n"
    "  disa-export engines/mar_b.plan --fp8 -o engines/mar_b.fp8.plan\n"
    "  disa-export mar_b.pth --fp16 --engine tensorrt-rtx --gpu sm_89,sm_120\n"
    "  disa-export --add-engine engines/mar_b.plan --gpu sm_86",
)
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option(
    "--add-engine",
    "plan",
    type=click.Path(path_type=Path),
    help="Build engines for this plan and put them into it; takes no checkpoint.",
)
@click.option("--vae", type=click.Path(path_type=Path), help="KL autoencoder (kl16.ckpt).")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Folder of the language model's tokenizer (Harmon).",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The plan [engines/CHECKPOINT.plan]."
)
@click.option("--fp32", "precision", flag_value="fp32", default="fp32", help="Compute in fp32.")
@click.option("--fp16", "precision", flag_value="fp16", help="Multiply matrices in fp16.")
@click.option("--bf16", "precision", flag_value="bf16", help="Multiply matrices in bf16.")
@click.option(
    "--int8", "precision", flag_value="int8", help="Multiply matrices in int8, calibrated."
)
@click.option("--fp8", "precision", flag_value="fp8", help="Multiply matrices in fp8, calibrated.")
@quantization_options
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="JSON file with sizes that no tensor tells, such as encoder_num_heads.",
)
@click.option("--labels", type=click.Path(path_type=Path), help="Class names, one a line.")
@sampling_options
@engine_options
@click.option("--no-check", is_flag=True, help="Do not compare the graphs with the fp32 model.")
@click.option("--tolerance", type=float, help="Largest relative error allowed by the comparison.")
def main(
    checkpoint: Path | None,
    plan: Path | None,
    vae: Path | None,
    tokenizer: Path | None,
    output: Path | None,
    precision: str,
    config: Path | None,
    labels: Path | None,
    no_check: bool,
    tolerance: float | None,
    calibration_images: int,
    token_tolerance: float,
    spread_tolerance: float,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    engine: str,
    gpus: tuple[int, ...],
    batch: Range,
    workspace: int | None,
    optimization_level: int | None,
    **sampling: Any,
) -> None:
    """Export CHECKPOINT (official training file, state dict or safetensors) as a plan.

    With --int8 or --fp8, CHECKPOINT may also be an fp32 plan. Images are drawn with the fp32
    graphs to find the ranges; products that lose too much stay in fp32.

    The plan holds the ONNX graphs of the model and runs wherever ONNX Runtime does. Every
    graph is compared with the fp32 model at several batch sizes; sampling options become
    the plan's defaults. TensorRT engines are built where TensorRT and a GPU are there, or
    where --engine or --gpu ask for them.
    """
    engines = EngineOptions.from_command(engine, gpus, batch, workspace, optimization_level)
    if engine == "auto" and not gpus and not engines_by_default():
        engines = None
    if (checkpoint is None) == (plan is None):
        raise click.UsageError("give CHECKPOINT, or --add-engine PLAN")
    if plan is not None:
        if engines is None:
            raise click.UsageError("say what to build: --gpu sm_89, or --engine tensorrt-rtx")
        _report_engines(add_engines(plan, engines, output))
        return
    assert checkpoint is not None
    if engines is not None:
        check_engines(engines, precision)
    _check_defaults(sampling)
    defaults = {name: value for name, value in sampling.items() if value is not None}
    try:
        from .cli_quantize import describe, quantize, quantize_checkpoint, quantize_options
        from .export import export
    except ImportError as error:
        raise MissingDependency(error.name or "torch", "export") from error
    path = output or default_path(checkpoint, precision)

    def make(target: Path, precision: str = "fp32", tolerance: float | None = None) -> None:
        exported = export(
            checkpoint,
            target,
            vae=vae,
            tokenizer=tokenizer,
            precision=precision,
            config=config,
            defaults=defaults,
            class_names=read_labels(labels) if labels else None,
            check=not no_check,
            tolerance=tolerance,
            report=_report,
        )
        _report_exported(exported, precision)

    if precision not in QUANTIZED:
        if checkpoint.suffix == PLAN_SUFFIX:
            raise click.UsageError("a plan can be quantised: say --int8 or --fp8")
        make(path, precision, tolerance)
    else:
        options = quantize_options(
            precision,
            calibration_images,
            tolerance,
            token_tolerance,
            spread_tolerance,
            prompts,
            prompt_file,
            not no_check,
        )
        if checkpoint.suffix == PLAN_SUFFIX:
            if defaults or vae or tokenizer or config or labels:
                raise click.UsageError(
                    "a plan has its own sizes, labels and defaults: leave those options out"
                )
            done = quantize(checkpoint, path, options, _report)
        else:
            done = quantize_checkpoint(make, path, options, _report)
        click.echo("\n".join(describe(done, options)))
    if engines is not None:
        _report_engines(add_engines(path, engines))
    click.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def default_path(source: Path, precision: str) -> Path:
    """Where a plan goes that is not told: beside a plan, or into engines."""
    if source.suffix == PLAN_SUFFIX:
        return source.with_suffix(f".{precision}{PLAN_SUFFIX}")
    return Path("engines") / f"{source.stem}{PLAN_SUFFIX}"


def _report(stage: str) -> None:
    click.echo(f"  {stage}", err=True)


def _report_exported(exported: "Exported", precision: str) -> None:
    made_from = exported.manifest["source"]["file"]
    click.echo(f"{exported.manifest['family']} from {made_from} ({exported.layout}), {precision}")
    worst: dict[str, float] = defaultdict(float)
    for found in exported.errors:
        worst[found.graph] = max(worst[found.graph], found.relative)
    for graph, relative in worst.items():
        click.echo(f"  {graph:<10} differs from fp32 by {relative:.1e} at most")
    if exported.unused:
        click.echo(
            f"  not used: {len(exported.unused)} of the checkpoint's tensors, such as "
            f"{', '.join(exported.unused[:3])}: is it a variant of {exported.manifest['family']}?",
            err=True,
        )


def _report_engines(built: Sequence[BuiltEngine]) -> None:
    for engine in built:
        info = engine.info
        took = "already built" if engine.cached else f"built in {engine.seconds:.1f} s"
        click.echo(
            f"  {info.graph:<10} {info.backend} {info.version}, {' '.join(info.architectures)}: "
            f"{engine.size / 1e6:.1f} MB, {took}"
        )


def _check_defaults(sampling: dict[str, Any]) -> None:
    if sampling["schedule"]:
        if sampling["steps"] or sampling["strategy"]:
            raise DisaError("--schedule says the steps: leave out --steps and --strategy")
        sampling["schedule"] = schedule_content(read_schedule(sampling["schedule"]))
    if sampling["steps"]:
        AnnealedSchedule(*parse_steps(sampling["steps"]))
    for option, lowest in (("cfg", 0.0), ("temperature", 0.0)):
        if sampling[option] is not None and sampling[option] < lowest:
            raise DisaError(f"--{option} must not be negative")
