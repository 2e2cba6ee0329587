"""disa-calibrate: measures a plan, and fits the denoising steps to it."""

import json
import re
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import __version__
from ..cli import DisaCommand, progress_bar
from ..engines.checked_json import any_object
from ..engines.open import ENGINES
from ..engines.plan import Plan
from ..errors import DisaError
from ..runtime.bench_report import check_writable, write_text
from ..runtime.options import other_sampling_options
from ..runtime.outputs import identify
from ..runtime.pipeline import Pipeline
from ..runtime.run import choose_prompts, take_in_turn
from ..runtime.schedule import (
    AnnealedSchedule,
    FittedSchedule,
    Strategy,
    parse_steps,
    schedule_content,
)
from .carry import measure_carry
from .fit import Tradeoff, counts_of, fit_to_cost, fit_to_error
from .measure import Measurement, measure
from .record import measurement_content, read_measurement

DEFAULT_NUM = 128
MAX_BATCH = 32
MIN_BATCH = 2
CARRY_IMAGES = 32
MADE = (
    "made_by",
    "plan",
    "plan_sha256",
    "engine",
    "options",
    "precision",
    "reference_steps",
    "seed",
)
"""What a schedule file says of its measurement."""
OF_DRAWING = (
    *("num", "precision", "reference_steps", "iterations", "seed", "batch_size"),
    *("prompts", "prompt_file", "size"),
    *("sampler", "cfg", "cfg_schedule", "temperature", "guidance_interval"),
)
"""Options that mean nothing where nothing is drawn."""


@click.command(
    cls=DisaCommand,
    epilog="Examples:\n\n\b\n"
    "  disa-calibrate engines/mar_b.plan --num 256 -o mar_b.schedule.json\n"
    "  disa-calibrate engines/mar_b.plan --measured mar_b.schedule.json --match cost -o c.json\n"
    "  disa-run engines/mar_b.plan --schedule mar_b.schedule.json --num 64",
)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option(
    "--num",
    type=click.IntRange(2),
    default=DEFAULT_NUM,
    show_default=True,
    help="Images to draw at most; fewer where the intervals are tight before.",
)
@click.option(
    "--precision",
    type=click.FloatRange(0),
    default=0.05,
    show_default=True,
    help="Stop when no 95 % interval reaches further than this share of its signal's largest mean.",
)
@click.option(
    "--reference-steps",
    type=click.IntRange(6, 1000),
    default=100,
    show_default=True,
    help="Steps that stand for the exact distribution.",
)
@click.option(
    "--match",
    type=click.Choice(["quality", "cost"]),
    default="quality",
    show_default=True,
    help="Quality: as good as the baseline, and cheaper. Cost: as cheap, and better.",
)
@click.option(
    "--target",
    type=click.FloatRange(0, min_open=True),
    help="The error itself, instead of --match.",
)
@click.option(
    "--cost",
    type=click.Choice(["calls", "time"]),
    default="calls",
    show_default=True,
    help="Count head calls weighted by their rows, or the measured time of the head.",
)
@click.option("--iterations", type=click.IntRange(1), help="AR iterations of an image.")
@click.option("--steps", metavar="UPPER:LOWER", help="Steps of the baseline; the plan's default.")
@other_sampling_options
@click.option("--prompt", "prompts", multiple=True, help="Text to draw; may be repeated.")
@click.option("--prompt-file", type=click.Path(path_type=Path), help="Texts to draw, one a line.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(MIN_BATCH), help="Images drawn together.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; all cores by default.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The schedule [PLAN.schedule.json]."
)
@click.option(
    "--measured",
    "measured_before",
    type=click.Path(path_type=Path),
    help="A schedule file of an earlier run: fit again to what it measured.",
)
@click.option("--plot", is_flag=True, help="Also draw the measurement, as OUTPUT with .png.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def main(
    plan: Path,
    num: int,
    precision: float,
    reference_steps: int,
    match: str,
    target: float | None,
    cost: str,
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
    """Measure PLAN and write the steps that each AR iteration needs.

    Images are drawn with many denoising steps. In each AR iteration the tokens are drawn again
    from the same state, with many steps and with few: how well they can be predicted, how much
    they vary, how straight their denoising paths are, and how far fewer steps lead away.
    """
    path = output or plan.with_suffix(".schedule.json")
    if plot:
        from .plot import require_matplotlib

        require_matplotlib()
    if path in (plan, path.with_suffix(".png")):
        raise click.UsageError(f"{path} is no name for a schedule: give one such as steps.json")
    if measured_before is None:
        pipe = Pipeline.from_plan(plan, engine, threads=threads)
        baseline = baseline_schedule(pipe.plan, sampling)
        settings = pipe.settings(**sampling)
        conditions = choose_conditions(pipe, num, prompts, prompt_file)
        size = batch_size or max(MIN_BATCH, min(MAX_BATCH, pipe.auto_batch_size(settings)))
        prepare(path)
        measured = draw_and_measure(
            pipe, settings, conditions, baseline, size, reference_steps, precision, seed
        )
        made = about(
            pipe, settings, precision=precision, reference_steps=reference_steps, seed=seed
        )
    else:
        refuse_options_of_drawing()
        with Plan.open(plan) as opened:
            baseline = baseline_schedule(opened, sampling)
            measured, made = read_again(measured_before, opened)
        prepare(path)
    steps = fit(measured.tradeoff, baseline, match, target, cost)
    content = {
        **schedule_content(FittedSchedule(tuple(steps))),
        **made,
        **found(measured, steps, baseline, cost),
        **measurement_content(measured),
    }
    write_text(compact(content) + "\n", path)
    if plot:
        from .plot import draw

        draw(measured, steps, baseline, path.with_suffix(".png"))
    click.echo(compact(content) if as_json else summary(content, path))


def refuse_options_of_drawing() -> None:
    """A usage error if an option is given that only drawing heeds."""
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and option.name in OF_DRAWING:
            raise click.UsageError(f"--measured draws nothing: leave out {option.opts[0]}")


def prepare(path: Path) -> None:
    """DisaError if the schedule could not be written; its folder is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DisaError(f"{path} cannot be written: {error.strerror or error}") from error
    check_writable(path)


def choose_conditions(
    pipe: Pipeline, num: int, prompts: tuple[str, ...], prompt_file: Path | None
) -> list[Any]:
    """What each image is drawn of: the classes in turn, or the prompts."""
    if pipe.family.classes is None:
        return list(choose_prompts(pipe, num, prompts, prompt_file, ()))
    if prompts or prompt_file:
        raise DisaError(f"a {pipe.plan.manifest.family} model draws classes, not prompts")
    return take_in_turn(range(pipe.family.classes), num)


def draw_and_measure(
    pipe: Pipeline,
    settings: Any,
    conditions: list[Any],
    baseline: AnnealedSchedule,
    batch_size: int,
    reference_steps: int,
    precision: float,
    seed: int,
) -> Measurement:
    """Measure on one image for each condition at most, with progress bars."""
    few = conditions[:CARRY_IMAGES]
    with progress_bar(len(few), "how far errors carry over", "image") as advance:
        carry = measure_carry(pipe, settings, few, batch_size, seed, advance)
    with progress_bar(len(conditions), f"at most {len(conditions)} images", "image") as advance:
        return measure(
            pipe,
            settings,
            conditions,
            many=reference_steps,
            precision=precision,
            batch_size=batch_size,
            base=AnnealedSchedule(baseline.upper, baseline.lower),
            carry=carry,
            seed=seed,
            advance=advance,
        )


def read_again(path: Path, plan: Plan) -> tuple[Measurement, dict[str, Any]]:
    """The measurement in a schedule file of the same plan, and what it says of itself."""
    measured, root = read_measurement(path)
    written = any_object(root)
    if written.get("plan_sha256") != identify(plan):
        raise DisaError(
            f"{path} was measured on another plan than {plan.path}: measure this one without "
            "--measured"
        )
    return measured, {name: written[name] for name in MADE if name in written}


def baseline_schedule(plan: Plan, sampling: dict[str, Any]) -> AnnealedSchedule:
    """The schedule to be matched: what is given, the rest from the plan's defaults."""
    defaults = plan.manifest.defaults
    upper, lower = parse_steps(sampling["steps"] or str(defaults.get("steps", "50:5")))
    strategy = sampling["strategy"] or defaults.get("strategy", Strategy.LINEAR)
    if strategy not in list(Strategy):
        raise DisaError(f"{plan.path} has an unknown strategy: say another with --strategy")
    return AnnealedSchedule(upper, lower, Strategy(strategy))


def fit(
    tradeoff: Tradeoff, baseline: AnnealedSchedule, match: str, target: float | None, cost: str
) -> list[int]:
    """The fitted steps; DisaError if no measured count is good enough for `target`."""
    before = counts_of(baseline, len(tradeoff.tokens))
    error, price = tradeoff.of(before, cost)
    if target is None and match == "cost":
        steps = fit_to_cost(tradeoff, price, cost)
        return steps if tradeoff.of(steps, cost)[0] <= error else before
    steps = fit_to_error(tradeoff, error if target is None else target, cost)
    reached, fitted_price = tradeoff.of(steps, cost)
    if target is None and (fitted_price > price or reached > error):
        return before
    if target is not None and reached > target:
        raise DisaError(
            f"an error of {target:g} is not reached: {tradeoff.counts[-1]} steps in every "
            f"iteration have {reached:.2g}; give a larger --target or --reference-steps"
        )
    return steps


def about(pipe: Pipeline, settings: Any, **how: float) -> dict[str, Any]:
    """What was measured, and how."""
    options = {
        name: value if isinstance(value, int | float) else str(value)
        for name, value in vars(settings).items()
        if name not in ("schedule", "tolerance")
    }
    return {
        "made_by": f"disa {__version__}",
        "plan": pipe.plan.manifest.name,
        "plan_sha256": identify(pipe.plan),
        "engine": pipe.engine,
        "options": options,
        **how,
    }


def found(
    measured: Measurement, steps: list[int], baseline: AnnealedSchedule, cost: str
) -> dict[str, Any]:
    """What the measurement says about the fitted steps and the baseline."""
    tradeoff = measured.tradeoff
    of_baseline = counts_of(baseline, len(steps))
    return {
        "cost": cost,
        "fitted": predicted(tradeoff, steps),
        "baseline": {"schedule": str(baseline), **predicted(tradeoff, of_baseline)},
    }


def compact(content: dict[str, Any]) -> str:
    """JSON in which lists of numbers take one line."""
    text = json.dumps(content, indent=1)
    return re.sub(r"\[\s+([-+.e\d,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)


def predicted(tradeoff: Tradeoff, steps: list[int]) -> dict[str, float]:
    """What the measurement says about some steps, for one image."""
    error, calls = tradeoff.of(steps, "calls")
    return {"error": error, "calls": calls, "seconds": tradeoff.of(steps, "time")[1]}


def summary(content: dict[str, Any], path: Path) -> str:
    """What was measured and chosen, for people."""
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
    for point in content["adaptive"]:
        lines.append(
            f"  adaptive {point['tolerance']:<9g} error {point['error']:.5f} "
            f"(±{point['half_width']:.5f}), {point['calls']:.0f} rows"
        )
    return "\n".join([*lines, str(path)])
