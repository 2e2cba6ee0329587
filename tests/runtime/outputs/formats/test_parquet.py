"""Shards in Parquet: names, columns and row groups."""

import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from disa.errors import DisaError
from disa.runtime.outputs.formats.format import StoredImage
from disa.runtime.outputs.formats.parquet import Parquet
from disa.runtime.outputs.image_files import ImageFile
from disa.runtime.outputs.selection import ImageRow


def stored(count: int, condition: int | str = 3) -> list[StoredImage]:
    return [
        StoredImage(ImageRow(i, condition, 9), ImageFile("png", b"%d" % i, 4, 6), "it")
        for i in range(count)
    ]


def written(images: list[StoredImage]) -> io.BytesIO:
    file = io.BytesIO()
    Parquet().write(file, images, len(images))
    return io.BytesIO(file.getvalue())


def test_names_are_numbers() -> None:
    container = Parquet()
    for number, name in ((0, "data/000000.parquet"), (1_234_567, "data/1234567.parquet")):
        assert container.name(number) == name
        assert container.number(name) == number
    for name in ("000000.parquet", "data/0000001.parquet", "data/00001.parquet", "data/000001.png"):
        assert container.number(name) is None


@pytest.mark.parametrize(
    ("count", "groups"), [(1, [1]), (64, [64]), (65, [64, 1]), (130, [64, 64, 2])]
)
def test_a_reader_needs_few_images_in_memory(count: int, groups: list[int]) -> None:
    file = pyarrow.parquet.ParquetFile(written(stored(count)))
    found = file.metadata
    assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == groups
    column = found.row_group(0).column(0)
    # Images are compressed already, and their smallest and largest bytes say nothing.
    assert (column.compression, column.has_dictionary_page) == ("UNCOMPRESSED", False)
    assert not column.is_stats_set


@pytest.mark.parametrize(
    ("condition", "name", "kind"), [(3, "label", "int64"), ("a dog", "prompt", "string")]
)
def test_columns(condition: int | str, name: str, kind: str) -> None:
    table = pyarrow.parquet.read_table(written(stored(2, condition)))
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features.pop("image") == {"_type": "Image"}
    assert features.pop(name) == {"dtype": kind, "_type": "Value"}
    rest = ("index", "seed", "height", "width")
    assert features == {each: {"dtype": "int64", "_type": "Value"} for each in rest}
    assert table.to_pylist()[1] == {
        "image": {"bytes": b"1", "path": "000001.png"},
        name: condition,
        **dict(zip(rest, (1, 9, 4, 6), strict=True)),
    }


def test_it_is_read_again() -> None:
    images = stored(70)
    rows = [image.row for image in images]
    found = list(Parquet().read(written(images), rows, "some.parquet"))
    assert [(image.row, image.file) for image in found] == [(i.row, i.file) for i in images]
    assert found[-1].where == "some.parquet: image 69"


def test_shards_of_other_images() -> None:
    images = stored(3)
    rows = [image.row for image in images]
    for wrong in (rows[:2], [*rows, ImageRow(3, 3, 9)], rows[::-1]):
        with pytest.raises(DisaError, match=r"^some\.parquet is damaged"):
            list(Parquet().read(written(images), wrong, "some.parquet"))


@pytest.mark.parametrize(
    "changed",
    [
        {"image": [{"bytes": None, "path": "000000.png"}]},
        {"image": [{"bytes": "text", "path": "000000.png"}]},
        {"image": [{"bytes": b"pixels", "path": "000000.raw"}]},
        {"image": [{"bytes": b"pixels", "path": "000000"}]},
        {"height": ["4"]},
        {"width": [None]},
    ],
)
def test_rows_that_are_not_images(changed: dict[str, list[object]]) -> None:
    columns = pyarrow.parquet.read_table(written(stored(1))).to_pydict() | changed
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    with pytest.raises(DisaError, match=r"^some\.parquet is damaged"):
        list(Parquet().read(io.BytesIO(file.getvalue()), [ImageRow(0, 3, 9)], "some.parquet"))


def test_errors_of_the_disk_are_not_damage() -> None:
    class Disk(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        list(Parquet().read(Disk(written(stored(1)).getvalue()), [], "it"))
    with pytest.raises(DisaError, match="damaged"):
        list(Parquet().read(io.BytesIO(b"PAR1"), [], "it"))
