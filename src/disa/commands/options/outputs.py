"""Options for the place and the format of a run's images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ...errors import DisaError
from ...runtime.outputs.image_files import IMAGE_TYPES, ImageType
from ...runtime.outputs.layout import SHARD_IMAGES, Layout

Command = TypeVar("Command", bound=Callable[..., Any])

FORMATS = (*IMAGE_TYPES, "geneval", "webdataset", "parquet", "npz")

_OPTIONS = (
    click.option(
        "-o",
        "--output",
        default="outputs",
        show_default=True,
        help="Folder or URL (s3://bucket/folder) for the images; an interrupted run continues "
        "there.",
    ),
    click.option(
        "--format",
        type=click.Choice(FORMATS),
        default="png",
        show_default=True,
        help="Image files in a folder (png, jpeg, webp), a folder for each prompt (geneval), tar "
        "shards (webdataset), parquet shards, or one npz file for the evaluator of ADM.",
    ),
    click.option(
        "--image-type",
        type=click.Choice(IMAGE_TYPES),
        help="How images are encoded in webdataset and parquet; png by default.",
    ),
    click.option(
        "--quality",
        type=click.IntRange(1, 100),
        help="Quality of JPEG (95 by default) and WebP (lossless by default).",
    ),
    click.option(
        "--shard-images",
        type=click.IntRange(1),
        help=f"Images in a shard of webdataset or parquet; {SHARD_IMAGES} by default, about 1 GB "
        "of PNG at 256x256.",
    ),
    click.option("--npz", is_flag=True, help="Also write samples.npz (uint8 NHWC) for FID tools."),
    click.option("--overwrite", is_flag=True, help="Delete the run in the folder first."),
)


def output_options(command: Command) -> Command:
    """Add the options of `OutputOptions`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class OutputOptions:
    """The values of the options of the same names."""

    output: str
    format: str
    image_type: str | None
    quality: int | None
    shard_images: int | None
    npz: bool
    overwrite: bool

    def layout(self, images: int, unit_images: int, prompts: int) -> Layout:
        """The layout of a run.

        Args:
            images: number of images in the run.
            unit_images: images that are generated together.
            prompts: number of prompts, for GenEval.

        Raises:
            DisaError: the options do not go together.
        """
        if self.format == "geneval" and prompts < 1:
            raise DisaError("--format geneval has a folder for each prompt: give --prompt-file")
        if self.format == "geneval" and self.image_type not in (None, "png"):
            raise DisaError(
                "GenEval's evaluator passes over all files but .png: leave out --image-type"
            )
        in_folder = self.format in IMAGE_TYPES
        if in_folder and self.image_type not in (None, self.format):
            raise DisaError(
                f"--format {self.format} is an image type already: leave out --image-type"
            )
        if self.npz and not in_folder:
            raise DisaError(f"--npz is for image files in a folder, not for {self.format}")
        if self.shard_images and self.format not in ("webdataset", "parquet"):
            raise DisaError(f"--shard-images is for webdataset and parquet, not {self.format}")
        kind = ImageType(self.format if in_folder else self.image_type or "png", self.quality)
        # The evaluator of ADM reads one file.
        size = images if self.format == "npz" else self.shard_images or SHARD_IMAGES
        return Layout(
            "folder" if in_folder else self.format, kind, size, unit_images, max(1, prompts)
        )
