"""disa-export: makes a plan from a checkpoint."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..engines.gpu.profile import Range
from ..engines.plan.manifest import QUANTIZED
from ..engines.plan.plan import Plan
from ..engines.tensorrt.build import (
    BuiltEngine,
    EngineOptions,
    add_engines,
    check_engines,
    engines_by_default,
)
from ..exporter.destination import PLAN_SUFFIX, plan_path, refuse_inputs, refuse_other_plan
from ..files import is_same
from ..optional import import_failed
from ..runtime.families.conditions.labels import read_labels
from ..runtime.sampling.schedule import read_schedule, schedule_content
from .command import refuse_options
from .options.engines import engine_options
from .options.groups import ENGINE, OUTPUT, GroupedCommand
from .options.model_path import ModelPath
from .options.quantization import quantization_options
from .options.sampling import sampling_options_without

if TYPE_CHECKING:
    from ..exporter.export import Exported

ENGINE_OPTIONS = ("engine", "gpus", "batch", "workspace", "optimization_level")
CALIBRATION_OPTIONS = (
    *("calibration_images", "token_tolerance", "spread_tolerance"),
    *("prompts", "prompt_file"),
)
LIMITS = ("tolerance", "token_tolerance", "spread_tolerance")
"""Options that only limit the errors that are found by comparing."""
GROUPS = {
    "What to export": (
        *("plan", "vae", "latent_scale", "latent_shift", "weights", "ignore_tensors"),
        *("tokenizer", "config", "labels", "cached_backbone"),
    ),
    "Precision": ("precision", *CALIBRATION_OPTIONS),
    ENGINE: ENGINE_OPTIONS,
    OUTPUT: ("output", "overwrite", "no_check", "tolerance"),
}


@click.command(
    cls=GroupedCommand,
    groups=GROUPS,
    how="Default options of the plan",
    epilog="Examples:\n\n\b\n"
    "  disa-export mar_b.pth --vae kl16.ckpt --fp16\n"
    "  disa-export mar_run/ --vae sd-vae-ft-ema/ --latent-scale 0.2325 -o engines/\n"
    "  disa-export last.ckpt --weights state_dict.model_ema --ignore-tensors 'loss.*'\n"
    "  disa-export checkpoint-last.pth --config architecture.json -o engines/small.plan\n"
    "  disa-export mar_b.pth --int8 --calibration-images 32\n"
    "  disa-export engines/mar_b.plan --fp8 -o engines/mar_b.fp8.plan\n"
    "  disa-export mar_b.pth --fp16 --engine tensorrt-rtx --gpu sm_89,sm_120\n"
    "  disa-export --add-engine engines/mar_b.plan --gpu sm_86",
)
@click.argument("checkpoint", type=ModelPath(), required=False)
@click.option(
    "--add-engine",
    "plan",
    type=click.Path(path_type=Path),
    help="Build engines for this plan and add them to it; needs no checkpoint.",
)
@click.option(
    "--vae",
    type=ModelPath(),
    help="KL autoencoder: kl16.ckpt, another official or Lightning file, or a file or folder of "
    "diffusers.",
)
@click.option(
    "--latent-scale",
    type=float,
    help="Scale of the latents: the model was trained on (latents - shift) * scale [0.2325].",
)
@click.option("--latent-shift", type=float, help="Shift of the latents in the same formula [0].")
@click.option(
    "--weights",
    metavar="KEY",
    help="Key of the weights if CHECKPOINT has several sets, such as model_ema; '.' is the "
    "outermost dict [averaged weights if there are any].",
)
@click.option(
    "--ignore-tensors",
    metavar="PATTERN",
    multiple=True,
    help="Ignore tensors that the model does not use and whose names match (shell wildcards; may "
    "be repeated).",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Folder of the language model's tokenizer (Harmon).",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="The plan, or a folder for it [engines/NAME.plan, NAME from the checkpoint or the model].",
)
@click.option("--overwrite", is_flag=True, help="Replace a plan that was made from another file.")
@click.option(
    "--fp32", "precision", flag_value="fp32", default="fp32", help="Compute in fp32 (the default)."
)
@click.option("--fp16", "precision", flag_value="fp16", help="Compute matmuls in fp16.")
@click.option(
    "--bf16",
    "precision",
    flag_value="bf16",
    help="Compute matmuls in bf16 (not on the engine cpu).",
)
@click.option(
    "--int8",
    "precision",
    flag_value="int8",
    help="Compute matmuls in int8; generates images to find the ranges.",
)
@click.option(
    "--fp8",
    "precision",
    flag_value="fp8",
    help="Compute matmuls in fp8; generates images to find the ranges.",
)
@quantization_options
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="JSON file with sizes that tensors do not determine, such as encoder_num_heads.",
)
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Text file with one class name a line."
)
@sampling_options_without("tolerance")
@engine_options
@click.option(
    "--cached-backbone",
    is_flag=True,
    help="Add the graphs that disa-run --refresh needs: a cached backbone (MAR, Harmon).",
)
@click.option("--no-check", is_flag=True, help="Do not compare the graphs with the fp32 model.")
@click.option("--tolerance", type=float, help="Largest relative error allowed by the comparison.")
def main(
    checkpoint: Path | None,
    plan: Path | None,
    vae: Path | None,
    latent_scale: float | None,
    latent_shift: float | None,
    weights: str | None,
    ignore_tensors: tuple[str, ...],
    tokenizer: Path | None,
    output: str | None,
    overwrite: bool,
    precision: str,
    config: Path | None,
    labels: Path | None,
    cached_backbone: bool,
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
    """Export CHECKPOINT as a plan, a file that runs wherever ONNX Runtime does.

    CHECKPOINT is a training file, a state dict, safetensors, a folder of those, or
    hf://organisation/repository[@revision][/file]. Averaged weights (EMA) are used if there are
    any. Tensors that the model does not use are an error, because they may mean another
    architecture.

    With --int8 or --fp8, CHECKPOINT may also be an fp32 plan. Images are generated with the fp32
    graphs to find the ranges; matmuls with too large an error stay in fp32.

    Every graph is compared with the fp32 model at several batch sizes. Sampling options become the
    plan's defaults. TensorRT engines are built if TensorRT and a GPU are present, or if --engine
    or --gpu request them.
    """
    engines = EngineOptions.from_command(engine, gpus, batch, workspace, optimization_level)
    if engine == "auto" and not gpus and not engines_by_default():
        engines = None
    if (checkpoint is None) == (plan is None):
        raise click.UsageError("give CHECKPOINT, or --add-engine PLAN")
    if plan is not None:
        if engines is None:
            raise click.UsageError("choose what to build: --gpu sm_89, or --engine tensorrt-rtx")
        kept = {"plan", "output", "overwrite", "debug", *ENGINE_OPTIONS}
        refuse_options(
            {option.name for option in main.params if option.name not in kept},
            "--add-engine changes nothing else in a plan",
        )
        target = plan_path(output, lambda: plan.stem) if output else None
        if target and not is_same(target, plan):
            refuse_other_plan(target, lambda: _made_from(plan), overwrite)
        _report_engines(add_engines(plan, engines, target))
        return
    assert checkpoint is not None
    if no_check:
        refuse_options(LIMITS, "--no-check compares nothing")
    if precision not in QUANTIZED:
        refuse_options(CALIBRATION_OPTIONS, f"{precision} needs no calibration")
    if engines is None:
        refuse_options(ENGINE_OPTIONS[1:], "no engines are built")
    else:
        check_engines(engines, precision)
    defaults = defaults_of(sampling)
    try:
        from ..calibration.quantization.quantize import quantize
        from ..exporter.export import export
        from .export_quantized import describe, quantize_checkpoint, quantize_options
    except ImportError as error:
        raise import_failed(error, error.name or "torch", "export") from error
    source = _PlanSource(checkpoint, precision, config, weights, vae)
    path = plan_path(output, source.name) if output else source.default_path()
    refuse_inputs(path, (checkpoint, vae, tokenizer, config, labels, prompt_file))
    refuse_other_plan(path, source.sha256, overwrite)

    def make(target: Path, precision: str = "fp32", tolerance: float | None = None) -> None:
        exported = export(
            checkpoint,
            target,
            vae=vae,
            tokenizer=tokenizer,
            precision=precision,
            config=config,
            weights=weights,
            ignore_tensors=ignore_tensors,
            latent_scale=latent_scale,
            latent_shift=latent_shift,
            defaults=defaults,
            class_names=read_labels(labels) if labels else None,
            cached_backbone=cached_backbone,
            check=not no_check,
            tolerance=tolerance,
            overwrite=overwrite,
            report=_report,
        )
        _report_exported(exported, precision)

    if precision not in QUANTIZED:
        if checkpoint.suffix == PLAN_SUFFIX:
            raise click.UsageError("a plan can only be quantised: add --int8 or --fp8")
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
            scaled = (latent_scale, latent_shift) != (None, None)
            others = (tokenizer, config, labels, weights, ignore_tensors, cached_backbone, scaled)
            if defaults or vae or any(others):
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


@dataclass(frozen=True)
class _PlanSource:
    """The source of a plan, which determines the plan's default name and folder."""

    source: Path
    precision: str
    config: Path | None
    weights: str | None
    vae: Path | None

    def name(self) -> str:
        """The name of the plan without its suffix."""
        if self.source.suffix == PLAN_SUFFIX:
            return f"{self.source.stem}.{self.precision}"
        from ..exporter.export import name_for

        return name_for(self.source, self.config, self.weights, self.vae)

    def default_path(self) -> Path:
        """The default folder of the plan: that of a source plan, otherwise engines/."""
        if self.source.suffix == PLAN_SUFFIX:
            return self.source.with_name(self.name() + PLAN_SUFFIX)
        return plan_path(None, self.name)

    def sha256(self) -> str:
        """SHA-256 of the source checkpoint."""
        if self.source.suffix == PLAN_SUFFIX:
            return _made_from(self.source)
        from ..exporter.checkpoints.checkpoint import open_checkpoint
        from ..exporter.families.registry import is_known

        return open_checkpoint(self.source, self.weights, is_known).sha256()


def _made_from(plan: Path) -> str:
    with Plan.open(plan) as opened:
        return str(opened.manifest.source.get("sha256"))


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
    if exported.ignored:
        click.echo(
            f"  ignored {len(exported.ignored)} of the checkpoint's tensors, such as "
            f"{', '.join(exported.ignored[:3])}"
        )


def _report_engines(built: Sequence[BuiltEngine]) -> None:
    for engine in built:
        info = engine.info
        took = "already built" if engine.cached else f"built in {engine.seconds:.1f} s"
        click.echo(
            f"  {info.graph:<10} {info.backend} {info.version}, {' '.join(info.architectures)}: "
            f"{engine.size / 1e6:.1f} MB, {took}"
        )


def defaults_of(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling options that were set, under the names in a plan."""
    given = {name: value for name, value in sampling.items() if value is not None}
    if "schedule" in given:
        given["schedule"] = schedule_content(read_schedule(given["schedule"]))
    return given
