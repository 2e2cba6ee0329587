"""Plans of official sizes with random weights, in any precision.

    python -m benchmarks.random_plan mar_b -o mar_b.plan
    python -m benchmarks.random_plan mar_b --precision int8 --cached-backbone -o mar_b_int8.plan
    python -m benchmarks.random_plan xar_b --precision fp16 -o xar_b.plan
    python -m benchmarks.random_plan mar_b --vae-width 128 -o mar_b_pixels.plan

The weights are those of `benchmarks.official_loop --shapes`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from disa.calibration.quantization.options import QuantizeOptions
from disa.calibration.quantization.qdq import Format
from disa.calibration.quantization.quantize import quantize
from disa.commands.command import DisaCommand
from disa.engines.plan.manifest import QUANTIZED
from disa.exporter.export import export
from disa.exporter.families.configs.mar import MARConfig
from disa.exporter.random_weights import (
    SIZES,
    byte_tokenizer,
    family_of,
    official_config,
    random_checkpoint,
    random_tensors,
)
from disa.exporter.vae.decoder import KLConfig, KLDecoder
from disa.runtime.families.registry import OPTIONS
from disa.scratch import scratch_folder

TINY = MARConfig(
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


CALIBRATION: Mapping[str, Any] = {"num_iterations": 4, "steps": "6:3"}
"""How the images are generated that int8 and fp8 take their ranges from; the plan's defaults too.
Families whose number of AR iterations is fixed take the steps only."""
KL16_FACTORS = (1, 1, 2, 2, 4)
"""Widths of KL-16's maps, the finest first, relative to that one."""
CALIBRATION_IMAGES = 4
CALIBRATION_PROMPTS = ("a dog", "a red car")


@click.command(cls=DisaCommand)
@click.argument("size", type=click.Choice(list(SIZES)))
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", *QUANTIZED]),
    default="fp32",
    show_default=True,
)
@click.option("--cached-backbone", is_flag=True, help="With the graphs of --refresh.")
@click.option(
    "--vae-width",
    type=int,
    help="With a decoder to pixels whose finest map has these channels; KL-16 has 128.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
def main(
    size: str, precision: str, cached_backbone: bool, vae_width: int | None, output: Path
) -> None:
    """Make a plan of an official SIZE with random weights."""
    report = partial(click.echo, err=True)
    write_plan(official_config(size), precision, output, report, cached_backbone, vae_width)


def config_of(size: str) -> Any:
    """The configuration of an official size, or of "tiny"."""
    return TINY if size == "tiny" else official_config(size)


def write_plan(
    config: Any,
    precision: str,
    path: Path,
    report: Callable[[str], object] = lambda stage: None,
    cached_backbone: bool = False,
    vae_width: int | None = None,
) -> Path:
    """Export a model of that configuration with random weights to a plan at `path`.

    Args:
        vae_width: channels of the finest map of a decoder to pixels; without one if None.
    """
    reads_text = family_of(config).READS_TEXT
    with scratch_folder(path) as folder:
        checkpoint, full = folder / f"{path.stem}.pth", folder / path.name
        random_checkpoint(config, checkpoint)
        given: dict[str, Any] = {
            "cached_backbone": cached_backbone,
            "check": False,
            "report": report,
            # TINY's heads are not those of an official size, and tensors do not show them.
            "config": asdict(config) if isinstance(config, MARConfig) else None,
            "tokenizer": byte_tokenizer(folder) if reads_text else None,
            "vae": vae_width and random_vae(folder / "vae.ckpt", vae_width),
        }
        if precision in QUANTIZED:
            export(checkpoint, full, defaults=calibration_of(config), **given)
            options = QuantizeOptions(
                form=Format(precision),
                images=CALIBRATION_IMAGES,
                prompts=CALIBRATION_PROMPTS if reads_text else (),
            )
            quantize(full, path, options, report)
        else:
            export(checkpoint, path, precision=precision, **given)
    return path


def random_vae(path: Path, width: int) -> Path:
    """Write a decoder from 16 channels with random weights, of KL-16's shapes times `width` / 128.

    Raises:
        DisaError: `width` is not a multiple of 32.
    """
    widths = tuple(width * factor for factor in KL16_FACTORS)
    config = KLConfig(
        latent_channels=16,
        inner_channels=16,
        channels=widths,
        res_blocks=3,
        out_channels=3,
        attention=(len(widths) - 1,),
    )
    torch.save(random_tensors(lambda: KLDecoder(config)), path)
    return path


def calibration_of(config: Any) -> dict[str, Any]:
    """`CALIBRATION`, as far as the family has these options."""
    options = {field.name for field in fields(OPTIONS[family_of(config).FAMILY])}
    return {name: value for name, value in CALIBRATION.items() if name in options}


if __name__ == "__main__":
    main()
