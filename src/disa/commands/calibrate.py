"""disa-calibrate: measures a plan and fits the denoising steps of each AR iteration."""

import json
import re
from pathlib import Path
from typing import Any

import click

from ..bench.report import check_writable, write_text
from ..calibration.arguments import MIN_BATCH, MIN_REFERENCE, check_limits, check_measurement
from ..calibration.calibrate import (
    COSTS,
    FITS,
    IMAGES,
    MATCHES,
    PRECISION,
    REFERENCE_STEPS,
    baseline_schedule,
    calibrate,
    check_fit,
    refit,
)
from ..calibration.measurement.measure import Measurement
from ..calibration.measurement.record import read_measurement
from ..calibration.measurement.refresh import check_cached_backbone
from ..calibration.spread import spread_classes
from ..checked_json import any_object
from ..engines.open import ENGINES
from ..engines.plan.plan import Plan
from ..errors import DisaError
from ..files import is_same
from ..progress import progress_bar
from ..runtime.outputs.run_folder import identify
from ..runtime.pipeline import Pipeline
from ..runtime.sampling.schedule import MAX_STEPS
from .command import refuse_options
from .options.groups import ENGINE, OUTPUT, WHAT, GroupedCommand
from .options.sampling import sampling_options_without
from .options.selection import all_prompts, repeat_in_turn

MEASUREMENT_FIELDS = (
    "made_by",
    "plan",
    "plan_sha256",
    "engine",
    "options",
    "precision",
    "reference_steps",
    "seed",
)
"""Fields of a schedule file that describe its measurement."""
GENERATION_OPTIONS = (
    *("num", "precision", "reference_steps", "num_iterations", "seed", "batch_size"),
    *("prompts", "prompt_file", "size"),
    *(
        "order",
        "sampler",
        "guidance_scale",
        "guidance_schedule",
        "temperature",
        "guidance_interval",
    ),
)
"""Options that have no effect with --measured, which generates no images."""
GROUPS = {
    WHAT: ("num", "prompts", "prompt_file", "seed"),
    "What to measure and fit": (
        *("fit", "precision", "reference_steps", "match", "target", "cost", "refresh"),
        "measured_before",
    ),
    ENGINE: ("engine", "threads", "batch_size"),
    OUTPUT: ("output", "plot", "as_json"),
}


@click.command(
    cls=GroupedCommand,
    groups=GROUPS,
    epilog="Examples:\n\n\b\n"
    "  disa-calibrate engines/mar_b.plan --num 256 -o mar_b.schedule.json\n"
    "  disa-calibrate engines/mar_b.plan --fit iterations --iterations 32 -o quick.schedule.json\n"
    "  disa-calibrate engines/mar_b.plan --refresh 0.05 -o refresh.schedule.json\n"
    "  disa-calibrate engines/mar_b.plan --measured mar_b.schedule.json --match cost -o c.json\n"
    "  disa-run engines/mar_b.plan --schedule mar_b.schedule.json --num 64",
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--num",
    type=click.IntRange(2),
    default=IMAGES,
    show_default=True,
    help="Largest number of images; fewer are generated if the intervals are narrow enough.",
)
@click.option(
    "--fit",
    type=click.Choice(FITS),
    default="steps",
    show_default=True,
    help="What to fit: the steps of each AR iteration, or (iterations) also how many tokens each "
    "predicts (MAR, Harmon).",
)
@click.option(
    "--precision",
    type=click.FloatRange(0),
    default=PRECISION,
    show_default=True,
    help="Stop when all 95 % intervals are within this share of the largest mean of their signal.",
)
@click.option(
    "--reference-steps",
    type=click.IntRange(MIN_REFERENCE, MAX_STEPS),
    default=REFERENCE_STEPS,
    show_default=True,
    help="Denoising steps of the reference, which is considered exact.",
)
@click.option(
    "--match",
    type=click.Choice(MATCHES),
    default="quality",
    show_default=True,
    help="quality: the error of the baseline at a lower cost; cost: a lower error at the cost of "
    "the baseline, which is --steps and --strategy.",
)
@click.option(
    "--target",
    type=click.FloatRange(0, min_open=True),
    help="The error to reach, instead of --match.",
)
@click.option(
    "--cost",
    type=click.Choice(COSTS),
    help="Cost of a schedule: head calls weighted by their rows [default for steps], or measured "
    "time [default for iterations, which includes the backbone].",
)
@click.option(
    "--refresh",
    type=click.FloatRange(0, min_open=True),
    metavar="ERROR",
    help="Also fit the full passes of a cached backbone, so that the other passes have at most "
    "this error, such as 0.05 (approximate; needs a plan exported with --cached-backbone).",
)
@sampling_options_without("schedule", "tolerance", "refresh")
@click.option("--prompt", "prompts", multiple=True, help="Text prompt; may be repeated.")
@click.option(
    "--prompt-file",
    type=click.Path(path_type=Path),
    help="File of prompts: one a line, or .json, .jsonl.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Seed of the noise and of the generation order.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(MIN_BATCH),
    help="Images generated together; by default derived from the size of the model.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default="auto",
    show_default=True,
    help="Engine of the graphs; auto selects the fastest available one.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The schedule file [PLAN.schedule.json].",
)
@click.option(
    "--measured",
    "measured_before",
    type=click.Path(path_type=Path),
    help="Schedule file of an earlier calibration, whose measurement is used again.",
)
@click.option(
    "--plot", is_flag=True, help="Also plot the measurement, into OUTPUT with the suffix .png."
)
@click.option("--json", "as_json", is_flag=True, help="Print the schedule file as JSON.")
def main(
    plan: Path,
    num: int,
    fit: str,
    precision: float,
    reference_steps: int,
    match: str,
    target: float | None,
    cost: str | None,
    refresh: float | None,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    seed: int,
    batch_size: int | None,
    engine: str,
    threads: int | None,
    output: Path | None,
    measured_before: Path | None,
    plot: bool,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Measure PLAN and write the denoising steps that each AR iteration needs.

    Images are generated with many denoising steps. In each AR iteration the tokens are sampled
    again from the same state, with many and with few steps. This measures how well tokens can be
    predicted, how much they vary, how straight their denoising paths are, and the error of fewer
    steps.
    """
    path = output or plan.with_suffix(".schedule.json")
    if plot:
        from ..calibration.plot import require_matplotlib

        require_matplotlib()
    read = (plan, prompt_file) if prompt_file else (plan,)
    if path in (*read, path.with_suffix(".png")) or any(is_same(path, file) for file in read):
        raise click.UsageError(f"{path} is not a name for a schedule: give one such as steps.json")
    fitting: dict[str, Any] = {"fit": fit, "match": match, "target": target, "cost": cost}
    fitting["refresh"] = refresh
    check_limits(target, refresh)
    if measured_before is None:
        check_measurement(precision, reference_steps, seed, batch_size, sampling)
        with Pipeline.from_plan(plan, engine, threads=threads) as pipe:
            baseline_schedule(pipe.plan, sampling)
            check_fit(fit, match, cost, pipe.plan)
            if refresh is not None:
                check_cached_backbone(pipe)
            pipe.options(**sampling)
            conditions = choose_conditions(pipe, num, prompts, prompt_file)
            prepare(path)
            done = calibrate(
                pipe,
                conditions,
                precision=precision,
                reference_steps=reference_steps,
                seed=seed,
                batch_size=batch_size,
                bar=lambda total, what: progress_bar(total, what, "image"),
                **fitting,
                **sampling,
            )
    else:
        refuse_options(GENERATION_OPTIONS, "--measured generates no images")
        with Plan.open(plan) as opened:
            baseline = baseline_schedule(opened, sampling)
            check_fit(fit, match, cost, opened)
            measured, fields = read_again(measured_before, opened)
        prepare(path)
        done = refit(measured, fields, baseline, **fitting)
    content = dict(done.content)
    write_text(compact(content) + "\n", path)
    if plot:
        from ..calibration.plot import draw

        draw(done.measured, done.schedule, done.baseline, path.with_suffix(".png"))
    click.echo(compact(content) if as_json else summary(content, path))


def prepare(path: Path) -> None:
    """Make the schedule's folder and check that the file can be written.

    Raises:
        DisaError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DisaError(f"{path} cannot be written: {error.strerror or error}") from error
    check_writable(path)


def choose_conditions(
    pipe: Pipeline, num: int, prompts: tuple[str, ...], prompt_file: Path | None
) -> list[Any]:
    """The condition of each image: classes from the whole range, or the prompts.

    Raises:
        DisaError: the model takes classes and prompts are given, or no usable prompt is given.
    """
    if pipe.family.classes is None:
        texts = all_prompts(prompts, prompt_file)
        return list(pipe.family.conditions(repeat_in_turn(texts, num or len(texts))))
    if prompts or prompt_file:
        raise DisaError(
            f"a {pipe.plan.manifest.family} model takes classes, not prompts: leave out --prompt "
            "and --prompt-file"
        )
    return spread_classes(pipe.family.classes, num)


def read_again(path: Path, plan: Plan) -> tuple[Measurement, dict[str, Any]]:
    """Read the measurement in a schedule file and the fields that describe it.

    Raises:
        DisaError: the file is damaged or was measured on another plan.
    """
    measured, root = read_measurement(path)
    written = any_object(root)
    if written.get("plan_sha256") != identify(plan):
        raise DisaError(
            f"{path} was measured on another plan than {plan.path}: measure this one without "
            "--measured"
        )
    return measured, {name: written[name] for name in MEASUREMENT_FIELDS if name in written}


def compact(content: dict[str, Any]) -> str:
    """JSON with each list of numbers on one line."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[\s+([-+.e\d,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)


def summary(content: dict[str, Any], path: Path) -> str:
    """The measurement and the fitted steps as text for the terminal."""
    signals = content["signals"]
    lines = [f"{content['images']} images, intervals within {content['tightness']:.1%}"]
    lines.append(f"  {'signal':<16}{'first':>9}{'middle':>9}{'last':>9}")
    for name, signal in signals.items():
        mean = signal["mean"]
        shown = (mean[0], mean[len(mean) // 2], mean[-1])
        lines.append(f"  {name:<16}" + "".join(f"{value:9.4f}" for value in shown))
    carry = content["tradeoff"]["carry"]
    shown = (carry[0], carry[len(carry) // 2], carry[-1])
    lines.append(f"  {'carry-over':<16}" + "".join(f"{value:9.4f}" for value in shown))
    for name in ("baseline", "fitted"):
        row = content[name]
        label = row.get("schedule", f"fitted {content['steps'][0]}:{content['steps'][-1]}")
        lines.append(
            f"  {label:<18} error {row['error']:.5f}, {row['calls']:.0f} rows and "
            f"{row['seconds']:.3f} s of the head for an image"
        )
        if "backbone_seconds" in row:
            lines.append(
                f"  {'':<18} {row['iterations']} iterations, {row['backbone_seconds']:.3f} s of "
                f"the backbone; error of tokens predicted at once {row['dependence']:.3f}"
            )
    lines += refresh_summary(content)
    for point in content["adaptive"]:
        lines.append(
            f"  adaptive {point['tolerance']:<9g} error {point['error']:.5f} "
            f"(±{point['half_width']:.5f}), {point['calls']:.0f} rows"
        )
    return "\n".join([*lines, str(path)])


def refresh_summary(content: dict[str, Any]) -> list[str]:
    """The errors for some numbers of full passes, and the passes that were selected."""
    if "refresh_choices" not in content:
        return []
    choices, chosen = content["refresh_choices"], content["refresh_fitted"]
    places = {round(index * (len(choices) - 1) / 6) for index in range(7)}
    lines = [
        f"  {len(choice['passes']):>3} full passes    error {choice['error']:.5f} of the others, "
        f"{choice['backbone_seconds']:.3f} s of the backbone"
        for index, choice in enumerate(choices)
        if index in places
    ]
    passes = ",".join(map(str, chosen["passes"]))
    lines.append(f"  chosen: {passes} (error {chosen['error']:.5f})")
    return lines
