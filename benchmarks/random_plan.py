"""Plans of MAR's official sizes with random weights, in any precision.

    python -m benchmarks.random_plan mar_b -o mar_b.plan
    python -m benchmarks.random_plan mar_b --precision int8 -o mar_b_int8.plan

The weights are those of `benchmarks.official_loop --shapes`.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from disa.calibration.quantization import QuantizeOptions, quantize
from disa.cli import DisaCommand
from disa.engines.manifest import QUANTIZED
from disa.exporter.export import export
from disa.exporter.mar_config import SIZES, Config, official_config
from disa.exporter.quantize import Format
from disa.exporter.random_weights import random_checkpoint

TINY = Config(
    img_size=64,
    vae_stride=16,
    patch_size=1,
    vae_embed_dim=16,
    class_num=10,
    buffer_size=4,
    encoder_embed_dim=32,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=32,
    decoder_depth=2,
    decoder_num_heads=2,
    diffloss_d=2,
    diffloss_w=64,
)
"""For trying out scripts in seconds."""


CALIBRATION: Mapping[str, Any] = {"iterations": 4, "steps": "6:3"}
"""How the images are drawn that int8 and fp8 take their ranges from; the plan's defaults too."""
CALIBRATION_IMAGES = 4


@click.command(cls=DisaCommand)
@click.argument("size", type=click.Choice(list(SIZES)))
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", *QUANTIZED]),
    default="fp32",
    show_default=True,
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(size: str, precision: str, output: Path) -> None:
    """Make a plan of an official SIZE with random weights."""
    write_random_plan(size, precision, output, lambda stage: click.echo(f"  {stage}", err=True))


def config_of(size: str) -> Config:
    """The configuration of "mar_b", "mar_l" or "mar_h", or "tiny"."""
    return TINY if size == "tiny" else official_config(size)


def write_random_plan(
    size: str, precision: str, path: Path, report: Callable[[str], object] = lambda stage: None
) -> Path:
    """Export a model of that size with random weights to a plan at `path`."""
    return write_plan(config_of(size), precision, path, report)


def write_plan(
    config: Config, precision: str, path: Path, report: Callable[[str], object] = lambda stage: None
) -> Path:
    """Export a model of that configuration with random weights to a plan at `path`."""
    given: dict[str, Any] = {"config": asdict(config), "check": False, "report": report}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        checkpoint, full = Path(folder) / f"{path.stem}.pth", Path(folder) / path.name
        random_checkpoint(config, checkpoint)
        if precision in QUANTIZED:
            export(checkpoint, full, defaults=CALIBRATION, **given)
            options = QuantizeOptions(form=Format(precision), images=CALIBRATION_IMAGES)
            quantize(full, path, options, report)
        else:
            export(checkpoint, path, precision=precision, **given)
    return path


if __name__ == "__main__":
    main()
