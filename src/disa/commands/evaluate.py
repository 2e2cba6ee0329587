"""disa-evaluate: compares generated images with real ones."""

import json
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..bench.report import check_writable, write_text
from ..errors import DisaError
from ..evaluation.evaluate import evaluate
from ..evaluation.features import FeatureExtractor
from ..evaluation.frechet import few_images
from ..evaluation.image_sets import Runs
from ..evaluation.reference import Statistics, open_reference
from ..files import is_same
from ..progress import progress_bar
from ..runtime.outputs.record import RECORD
from .command import DisaCommand, refuse_options


@click.command(
    cls=DisaCommand,
    epilog="Examples:\n\n\b\n"
    "  disa-evaluate outputs/run --reference adm_in256_stats.npz --inception weights.pth\n"
    "  disa-evaluate part-0 part-1 --reference val_256x256 --inception weights.pth \\\n"
    "      --precision-recall -o fid.json",
)
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--reference",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="What to compare with: statistics (.npz with mu and sigma), images (.npz with arr_0, or a "
    "folder), or a run.",
)
@click.option(
    "--features",
    type=click.Choice(["inception", "demo"]),
    default="inception",
    show_default=True,
    help="Network whose features are compared; demo is the classifier of the demo models.",
)
@click.option(
    "--inception",
    type=click.Path(path_type=Path),
    help="File with the converted official weights of Inception (pt_inception-2015-12-05).",
)
@click.option(
    "--images",
    type=click.IntRange(1),
    help="Number of images that RUNS must have together; without it, a missing last part is not "
    "noticed.",
)
@click.option("--precision-recall", is_flag=True, help="Also compute precision and recall.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Images that the network processes together.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="PyTorch device of the network: cpu, cuda, cuda:1, ...",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Also write the result to this file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def main(
    runs: tuple[str, ...],
    reference: Path,
    features: str,
    inception: Path | None,
    images: int | None,
    precision_recall: bool,
    batch_size: int,
    device: str,
    output: Path | None,
    as_json: bool,
) -> None:
    """Compare the images of RUNS with a reference: FID, Inception score, precision and recall.

    RUNS are folders or URLs written by disa-run, in any format. Several of them are evaluated as
    parts of one run. They must be complete, and begin with image 0 or have the number of --images.

    The images of a folder must have one size. Those of a data set with other sizes are to be
    cropped and scaled first, as the reference of the number that is compared was made.
    """
    if output:
        if any(file and is_same(output, file) for file in (reference, inception)):
            raise click.UsageError(f"{output} is read: give another file for -o")
        if output.name == RECORD and output.exists():
            raise click.UsageError(f"{output} is the record of a run: give another file for -o")
        check_writable(output)
    if features == "demo":
        refuse_options(("inception", "device"), "the classifier of the demo runs on the CPU")
    generated = Runs(runs, images)
    extractor = _open_features(features, inception, device)
    other = open_reference(reference, extractor.width, precision_recall)
    real = other.images if isinstance(other, Statistics) else other
    total = generated.count + (real.count if real else 0)
    with progress_bar(total, "images", "image") as advance:
        metrics = evaluate(generated, other, extractor, batch_size, precision_recall, advance)
    count = real.count if real else None
    note = few_images(generated.count, count, extractor.width)
    result = {
        "disa": __version__,
        "metrics": metrics,
        "generated": generated.describe(),
        "reference": other.source if isinstance(other, Statistics) else other.describe(),
        "network": extractor.describe(),
        "options": {"batch_size": batch_size, "device": device},
        **({"note": note} if note else {}),
    }
    text = json.dumps(result, indent=1)
    try:
        if output:
            write_text(text + "\n", output)
    finally:
        # Hours of work are not lost if the disk is full by now.
        click.echo(text if as_json else summary(metrics, generated.count, count, note))


def _open_features(name: str, inception: Path | None, device: str) -> FeatureExtractor:
    if name == "demo":
        from ..evaluation.demo import DemoFeatures

        return DemoFeatures()
    from ..evaluation.inception import FREE, Inception

    if inception is None:
        raise DisaError(f"--inception FILE is required, the weights of the network: {FREE}")
    return Inception(inception, device)


def summary(
    metrics: dict[str, Any], images: int, reference: int | None = None, note: str | None = None
) -> str:
    """The metrics as text for the terminal.

    Args:
        images: number of generated images.
        reference: number of images of the reference, if known.
        note: what to know about the distance.
    """
    other = f"{reference} images" if reference else "statistics"
    lines = [
        f"{images} images, compared with {other}",
        f"Fréchet distance  {metrics['frechet_distance']:.4f}",
    ]
    if "inception_score_mean" in metrics:
        mean, deviation = metrics["inception_score_mean"], metrics["inception_score_std"]
        lines.append(f"Inception score   {mean:.4f} ± {deviation:.4f}")
    lines += [
        f"{name.capitalize():<17} {metrics[name]:.4f}"
        for name in ("accuracy", "precision", "recall")
        if name in metrics
    ]
    return "\n".join([*lines, *([f"Note: {note}"] if note else [])])


if __name__ == "__main__":
    main()
