"""The layout of a run's images in files."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import DisaError
from .image_files import ImageType

PNG = ImageType()
FORMATS = ("folder", "geneval", "webdataset", "parquet", "npz")
SHARD_IMAGES = 10_000
"""About a gigabyte of PNG at 256x256 pixels."""


@dataclass(frozen=True)
class Layout:
    """The layout of a run's files; it does not change after the run has started.

    Attributes:
        format: one of FORMATS.
        image_type: encoding of the images.
        shard_images: images in a shard, for formats with shards.
        unit_images: images that are generated and written together, for formats with shards.
        prompts: number of prompts that alternate, for the folders of GenEval.
    """

    format: str = "folder"
    image_type: ImageType = PNG
    shard_images: int = SHARD_IMAGES
    unit_images: int = 1
    prompts: int = 1

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise DisaError(f"the format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if min(self.shard_images, self.unit_images, self.prompts) < 1:
            raise DisaError("a shard must have at least one image")
        if self.format == "npz" and self.image_type != PNG:
            raise DisaError("npz holds pixels: it has no image type and no quality")

    @property
    def sharded(self) -> bool:
        """Whether units are collected into larger files."""
        return self.format not in ("folder", "geneval")

    def to_json(self) -> dict[str, Any]:
        """For the run record."""
        content: dict[str, Any] = {
            "format": self.format,
            "image_type": self.image_type.name,
            "quality": self.image_type.quality,
        }
        if self.sharded:
            content |= {"shard_images": self.shard_images, "unit_images": self.unit_images}
        if self.format == "geneval":
            content["prompts"] = self.prompts
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Layout":
        """The layout in the result of `to_json`.

        Raises:
            KeyError, TypeError, DisaError: `content` is not such a result.
        """
        quality = content["quality"]
        counts = {
            name: content[name]
            for name in ("shard_images", "unit_images", "prompts")
            if name in content
        }
        for value in (*counts.values(), *([] if quality is None else [quality])):
            if type(value) is not int:
                raise TypeError("not a whole number")
        return cls(content["format"], ImageType(content["image_type"], quality), **counts)
