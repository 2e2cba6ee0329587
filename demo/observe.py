"""Measures DiSA's observations and trade-off on the demo's models: `python -m demo.observe`.

For each family it measures the signals over the AR iterations (disa-calibrate), and the quality of
every schedule and precision. `python -m demo.models_page` writes a page about the results.

    python -m demo.observe                                     # hours
    python -m demo.observe flowar --resume                     # after an interruption
    python -m demo.observe harmon --stage precisions           # with the other stages as they are
"""

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch

from disa.calibration.quantization.options import QuantizeOptions
from disa.calibration.quantization.qdq import Format
from disa.calibration.quantization.quantize import quantize
from disa.commands.calibrate import main as calibrate
from disa.commands.command import DisaCommand
from disa.engines.plan.plan import Plan
from disa.errors import DisaError
from disa.exporter.export import export

from . import autoencoder
from .classifier import load as load_classifier
from .data import captions, fashion_mnist
from .evaluate import ScheduleRun, evaluate
from .quality import quality, real_quality

TEST_IMAGES = 10_000
TOLERANCES = {
    "mar": (0.01, 0.05),
    "harmon": (0.01, 0.05),
    "flowar": (0.05, 0.2),
    "xar": (0.05, 0.2),
}
"""Tolerances of adaptive steps for each family; on flows small ones leave out hardly a step."""
SIGNALS, SCHEDULES, PRECISIONS = STAGES = ("signals", "schedules", "precisions")
HALVES = ("fp16", "bf16")
RESULTS = Path(__file__).with_name("results") / "observations"
WEIGHTS = Path(__file__).with_name("weights")
EXPORTS: dict[str, dict[str, Any]] = {
    "mar": {"defaults": {"num_iterations": 8, "guidance_scale": 8.0, "temperature": 0.9}},
    "harmon": {
        "tokenizer": WEIGHTS / "fashion_tokenizer.json",
        "config": WEIGHTS / "fashion_harmon.json",
        "defaults": {"num_iterations": 8, "guidance_scale": 4.0, "temperature": 0.9, "size": "32"},
    },
    "flowar": {"defaults": {"guidance_scale": 4.0}},
    "xar": {"defaults": {"guidance_scale": 6.0}},
}
"""The arguments of `export` for each family, in addition to its weights and the autoencoder."""


def schedules_of(family: str, steps: str, fitted: Path) -> list[str]:
    """The schedules to compare, in the notation of `demo.evaluate`.

    Args:
        steps: the annealed steps, UPPER:LOWER.
        fitted: a schedule file.
    """
    upper, lower = steps.split(":")
    middle = (int(upper) + int(lower)) // 2
    return [
        f"constant {upper}",
        f"linear {steps}",
        f"cosine {steps}",
        f"two-stage {steps}",
        f"constant {middle}",
        f"fitted {fitted}",
        *(f"adaptive {steps} {tolerance}" for tolerance in TOLERANCES[family]),
    ]


def measure_signals(plan: Path, family: str, images: int, output: Path) -> dict[str, Any]:
    """Run disa-calibrate, which also plots the signals; returns the content of `output`."""
    texts = [part for text in captions.prompts() for part in ("--prompt", text)]
    options = ["--num", str(images), "--plot", "-o", str(output)]
    arguments = [str(plan), *options, *(texts if family == "harmon" else [])]
    if calibrate.main(arguments, standalone_mode=False):
        raise DisaError(f"{plan} could not be measured")
    content: dict[str, Any] = json.loads(output.read_text())
    return content


def export_plan(family: str, folder: Path, precision: str = "fp32") -> Path:
    """Export the plan of a family's model."""
    path = folder / f"{precision}.plan"
    weights, vae = WEIGHTS / f"fashion_{family}.pth", WEIGHTS / "fashion_vae.ckpt"
    export(weights, path, vae=vae, precision=precision, overwrite=True, **EXPORTS[family])
    return path


def export_precisions(family: str, folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Export a plan in each precision but fp32.

    Returns:
        The plans, and the reasons by precision why the others were refused.
    """
    plans = [export_plan(family, folder, precision) for precision in HALVES]
    prompts = captions.prompts() if family == "harmon" else ()
    refused = {}
    for form in Format:
        path = folder / f"{form}.plan"
        try:
            quantize(folder / "fp32.plan", path, QuantizeOptions(form, prompts=tuple(prompts)))
            plans.append(path)
        except DisaError as error:
            refused[str(form)] = str(error)
    return plans, refused


def read(path: Path) -> dict[str, Any]:
    """Read a result of `demo.evaluate`."""
    content: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
    return content


def observe(
    family: str,
    folder: Path,
    measured: Mapping[str, Any],
    stages: Collection[str],
    signal_images: int,
    settings: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Measure one family; yields the content of its file after each stage.

    Args:
        folder: for plans and intermediate results.
        measured: the content of its file; stages that are not measured now are taken from it.
        stages: those of `STAGES` to measure.
        signal_images: images for the signals.
        settings: other arguments of `evaluate`.

    Raises:
        DisaError: a stage needs the result of one that was never measured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = export_plan(family, folder)
    with Plan.open(plan) as opened:
        steps = str(opened.manifest.defaults["steps"])
    content = dict(measured)
    for stage in STAGES:
        if stage not in stages:
            continue
        needed = STAGES[: STAGES.index(stage)]
        if missing := [name for name in needed if name not in content]:
            raise DisaError(f"{stage} of {family} need its {missing[0]}: measure these first")
        if stage == SIGNALS:
            output = folder / "signals.json"
            content[stage] = measure_signals(plan, family, signal_images, output)
        elif stage == SCHEDULES:
            fitted = folder / "fitted.json"
            fitted.write_text(json.dumps(content[SIGNALS]))
            content[stage] = measure_schedules(plan, schedules_of(family, steps, fitted), settings)
        else:
            content |= measure_precisions(family, folder, f"linear {steps}", settings)
        yield content


def measure_schedules(
    plan: Path, schedules: Sequence[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate schedules in fp32; "auto" may select an engine with another precision."""
    output = plan.with_name(SCHEDULES)
    runs = [ScheduleRun(plan, schedule) for schedule in schedules]
    evaluate(runs=runs, engine="cpu", output=output, options={"seed": 0}, **settings)
    return read(output)


def measure_precisions(
    family: str, folder: Path, schedule: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Evaluate one schedule in every precision but fp32.

    Returns:
        precisions, the result, and refused, the reasons why others were refused.
    """
    plans, refused = export_precisions(family, folder)
    output = folder / PRECISIONS
    runs = [ScheduleRun(each, schedule) for each in plans]
    evaluate(runs=runs, engine="auto", output=output, options={"seed": 0}, **settings)
    return {PRECISIONS: read(output), "refused": refused}


@torch.inference_mode()
def evaluate_autoencoder(data: Path, count: int) -> dict[str, float]:
    """Measure how well the autoencoder reconstructs test images.

    Returns:
        psnr, the peak signal-to-noise ratio in dB; images, their number; accuracy and distance,
        as in `Quality`.
    """
    model, classifier = autoencoder.load(autoencoder.WEIGHTS), load_classifier()
    pixels, labels = fashion_mnist.load("t10k", data)
    images = torch.from_numpy(fashion_mnist.to_model(pixels[:count])).unsqueeze(1)
    parts = [model.decode(model.encode(part).mean) for part in images.split(100)]
    decoded = torch.cat(parts).clamp(-1, 1)
    error = float((decoded - images).square().mean())
    reconstructed = ((decoded[:, 0] + 1) * 127.5).round().byte().numpy()
    moments, _ = real_quality(classifier, count, data)
    score = quality(classifier, moments, reconstructed, labels[:count])
    return {"psnr": 10 * math.log10(4 / error), "images": count, **vars(score)}


@click.command(cls=DisaCommand)
@click.argument("families", nargs=-1, type=click.Choice(["vae", *EXPORTS]))
@click.option("--stage", "stages", multiple=True, type=click.Choice(STAGES), default=STAGES)
@click.option("--num", type=click.IntRange(2), default=5000, show_default=True)
@click.option("--signal-images", type=click.IntRange(2), default=64, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=250, show_default=True)
@click.option("--threads", type=int, default=None, help="CPU threads; all cores by default.")
@click.option("--data", type=click.Path(path_type=Path), default=fashion_mnist.FOLDER)
@click.option("--work", type=click.Path(path_type=Path), default=Path("outputs/observations"))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--resume", is_flag=True, help="Continue an interrupted evaluation by the same code.")
def main(
    families: tuple[str, ...],
    stages: tuple[str, ...],
    num: int,
    signal_images: int,
    batch_size: int,
    threads: int | None,
    data: Path,
    work: Path,
    output: Path,
    resume: bool,
) -> None:
    """Measure FAMILIES (default: all); writes OUTPUT/FAMILY.json, and plans and plots to WORK."""
    settings = {
        "num": num,
        "batch_size": batch_size,
        "threads": threads,
        "data": data,
        "resume": resume,
    }
    output.mkdir(parents=True, exist_ok=True)
    for family in families or ("vae", *EXPORTS):
        path = output / f"{family}.json"
        if family == "vae":
            content = evaluate_autoencoder(data, min(num, TEST_IMAGES))
            path.write_text(json.dumps(content, indent=1) + "\n")
            continue
        measured = read(path) if path.exists() else {}
        for content in observe(family, work / family, measured, stages, signal_images, settings):
            path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
