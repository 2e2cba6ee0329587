"""Plans of the official sizes with random weights, in any precision."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from disa.exporter.export import export
from disa.exporter.mar_config import Config, official_config
from disa.exporter.random_weights import random_state

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
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        checkpoint = Path(folder) / f"{path.stem}.pth"
        torch.save({"model": random_state(config)}, checkpoint)
        export(
            checkpoint, path, precision=precision, config=asdict(config), check=False, report=report
        )
    return path
