"""The options for place and format of the images."""

import click
import pytest
from click.testing import CliRunner

from disa.commands.options.outputs import FORMATS, OutputOptions, output_options
from disa.errors import DisaError
from disa.runtime.outputs.layout import SHARD_IMAGES


def options(*arguments: str) -> OutputOptions:
    found = []

    @click.command()
    @output_options
    def command(**values: object) -> None:
        found.append(OutputOptions(**values))  # type: ignore[arg-type]

    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return found[0]


def test_image_files_in_a_folder_by_default() -> None:
    layout = options().layout(images=10, unit_images=4, prompts=0)
    assert (layout.format, layout.image_type.name, layout.unit_images) == ("folder", "png", 4)


def test_shards_have_the_images_that_were_chosen() -> None:
    tar = options("--format", "webdataset", "--image-type", "jpeg", "--shard-images", "7")
    layout = tar.layout(images=10, unit_images=4, prompts=0)
    assert (layout.format, layout.image_type.name, layout.shard_images) == ("webdataset", "jpeg", 7)
    parquet = options("--format", "parquet").layout(images=10, unit_images=4, prompts=0)
    assert parquet.shard_images == SHARD_IMAGES
    npz = options("--format", "npz").layout(images=10, unit_images=4, prompts=0)
    assert npz.shard_images == 10, "the evaluator of ADM reads one file"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--format", "geneval"], "give --prompt-file"),
        (["--format", "png", "--image-type", "jpeg"], "leave out --image-type"),
        (["--format", "npz", "--npz"], "not for npz"),
        (["--format", "geneval", "--image-type", "webp"], "passes over all files but .png"),
        (["--format", "png", "--shard-images", "7"], "not png"),
        (["--format", "npz", "--shard-images", "7"], "not npz"),
    ],
)
def test_options_that_exclude_each_other(arguments: list[str], complaint: str) -> None:
    with pytest.raises(DisaError, match=complaint):
        options(*arguments).layout(images=10, unit_images=4, prompts=2 * ("webp" in arguments))


def test_an_unknown_format_is_wrong_usage() -> None:
    result = CliRunner().invoke(
        click.command()(output_options(lambda **_: None)), ["--format", "x"]
    )
    assert result.exit_code == 2
    assert all(name in result.output for name in FORMATS)
