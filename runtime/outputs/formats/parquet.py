"""Shards for the `datasets` package and everything else that reads Parquet."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from ....errors import DisaError, MissingDependency
from ..image_files import SUFFIXES, ImageFile
from ..selection import ImageRow
from .format import StoredImage

ROW_GROUP = 64
FOLDER = "data"
"""This folder has only shards, so that tools can read it as a data set."""
_NAME = re.compile(FOLDER + r"/(\d{6,})\.parquet")


UNEXPECTED_CONTENT = (OSError, KeyError, TypeError, AttributeError, ValueError)
"""What reading damaged content raises; pyarrow's own OSError has no number."""


class Parquet:
    """Files data/000000.parquet, ... with image, index, seed, and label or prompt of each image.

    The image is a struct of its file's bytes and name, which `datasets` decodes. Implements
    `Container`.

    Raises:
        MissingDependency: pyarrow is not installed.
    """

    latents, folder = False, FOLDER

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingDependency("pyarrow", "parquet") from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet

    def name(self, number: int) -> str:
        return f"{FOLDER}/{number:06d}.parquet"

    def number(self, name: str) -> int | None:
        match = _NAME.fullmatch(name)
        return int(match[1]) if match and name == self.name(int(match[1])) else None

    def write(self, file: BinaryIO, images: Iterable[StoredImage], count: int) -> None:
        writer = None
        # Images are compressed already.
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        for group in _groups(images):
            if writer is None:
                schema = self._schema(isinstance(group[0].row.condition, str))
                writer = self._parquet.ParquetWriter(file, schema, **options)
            writer.write_table(self._table(group, schema))
        if writer:
            writer.close()

    def read(self, file: BinaryIO, rows: Iterable[ImageRow], where: str) -> Iterator[StoredImage]:
        expected = iter(rows)
        damaged = DisaError(f"{where} is damaged: delete it and run again to generate it")
        try:
            batches = self._parquet.ParquetFile(file).iter_batches(ROW_GROUP)
            for entry in (entry for batch in batches for entry in batch.to_pylist()):
                row = next(expected, None)
                if row is None or entry["index"] != row.index:
                    raise damaged
                stored = _image_file(entry)
                if stored is None:
                    raise damaged
                yield StoredImage(row, stored, f"{where}: image {row.index}")
        except (self._arrow.ArrowException, *UNEXPECTED_CONTENT) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # The disk, not the content.
            raise damaged from error
        if next(expected, None) is not None:
            raise damaged

    def _schema(self, prompts: bool) -> Any:
        arrow = self._arrow
        image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
        condition = ("prompt", arrow.string()) if prompts else ("label", arrow.int64())
        whole = [(name, arrow.int64()) for name in ("index", "seed", "height", "width")]
        features = {
            "image": {"_type": "Image"},
            condition[0]: {"dtype": str(condition[1]), "_type": "Value"},
            **{name: {"dtype": "int64", "_type": "Value"} for name, _ in whole},
        }
        described = json.dumps({"info": {"features": features}})
        return arrow.schema([("image", image), condition, *whole], {"huggingface": described})

    def _table(self, images: Sequence[StoredImage], schema: Any) -> Any:
        rows = [image.row for image in images]
        columns = {
            "image": [
                {"bytes": i.file.data, "path": f"{i.row.index:06d}.{i.file.suffix}"} for i in images
            ],
            schema.names[1]: [row.condition for row in rows],
            "index": [row.index for row in rows],
            "seed": [row.seed for row in rows],
            "height": [image.file.height for image in images],
            "width": [image.file.width for image in images],
        }
        return self._arrow.table(columns, schema)


def _image_file(entry: Mapping[str, Any]) -> ImageFile | None:
    """The image of a row; None if the row is not one that `Parquet` writes.

    Raises:
        KeyError, TypeError, AttributeError: the same.
    """
    image, size = entry["image"], (entry["height"], entry["width"])
    suffix = image["path"].rpartition(".")[2]
    if suffix not in SUFFIXES.values() or not isinstance(image["bytes"], bytes):
        return None
    if any(type(side) is not int for side in size):
        return None
    return ImageFile(suffix, image["bytes"], *size)


def _groups(images: Iterable[StoredImage]) -> Iterator[list[StoredImage]]:
    group: list[StoredImage] = []
    for image in images:
        group.append(image)
        if len(group) == ROW_GROUP:
            yield group
            group = []
    if group:
        yield group
