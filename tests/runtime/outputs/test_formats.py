import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from disa.errors import DisaError
from disa.runtime.outputs.formats.format import Unit
from disa.runtime.outputs.formats.registry import format_of
from disa.runtime.outputs.image_files import ImageType, encode_image, encode_latents
from disa.runtime.outputs.layout import Layout
from disa.runtime.outputs.run_folder import RunFolder
from disa.runtime.outputs.selection import Selection
from disa.runtime.outputs.store import LocalStore
from disa.runtime.stats import Stats

SHARDED = ("webdataset", "parquet", "npz")
COUNT = 11
CLASSES = [index % 3 for index in range(COUNT)]


def pixels(index: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (5, 7, channels), np.uint8)


def layout(kind: str, **options: object) -> Layout:
    shard = COUNT if kind == "npz" else 4
    return Layout(kind, shard_images=shard, unit_images=3, **options)  # type: ignore[arg-type]


def generate(
    place: Path, layout: Layout, selection: Selection, units: int | None = None, channels: int = 3
) -> None:
    """Run to the end, or die after some units."""
    store = LocalStore(place)
    kind = format_of(layout)
    with RunFolder(store, {"seed": 0}, selection, layout, "test") as folder:
        shards = folder.shards()
        for number, unit in enumerate(folder.units(3)):
            if number == units:
                return
            files = {
                offset: encode_image(pixels(unit.rows[offset].index, channels), layout.image_type)
                for offset in unit.missing
            }
            kind.write(store, unit, files)
            shards += folder.finished(unit, Stats())
        for shard in shards:
            kind.assemble(store, shard, selection)
            folder.assembled(shard)
        assert folder.finish(None)["complete"]


def contents(place: Path) -> dict[str, bytes]:
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and path.name != "units.jsonl"
    }


@pytest.mark.parametrize("kind", SHARDED)
def test_an_interrupted_run_gives_the_same_shards(kind: str, tmp_path: Path) -> None:
    selection = Selection.of_seed(CLASSES, 0)
    generate(tmp_path / "whole", layout(kind), selection)
    for units in (0, 1, 2):
        generate(tmp_path / "cut", layout(kind), selection, units)
    assert (tmp_path / "cut" / "parts").exists()
    generate(tmp_path / "cut", layout(kind), selection)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert not (tmp_path / "cut" / "parts").exists()


@pytest.mark.parametrize("kind", SHARDED)
def test_units_that_were_left_beside_their_shard_are_deleted(kind: str, tmp_path: Path) -> None:
    """As by a run that was killed between writing the shard and deleting them."""
    selection = Selection.of_seed(CLASSES, 0)
    generate(tmp_path, layout(kind), selection)
    whole = contents(tmp_path)
    unit = Unit(0, selection.rows(0, 3), [0, 1, 2])
    files = {index: encode_image(pixels(index), ImageType()) for index in range(3)}
    format_of(layout(kind)).write(LocalStore(tmp_path), unit, files)
    generate(tmp_path, layout(kind), selection)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("kind", [*SHARDED, "folder"])
def test_what_was_written_is_read(kind: str, tmp_path: Path) -> None:
    selection = Selection([7, 2, *range(20, 29)], CLASSES, list(range(COUNT)))
    generate(tmp_path, layout(kind), selection)
    found = list(format_of(layout(kind)).read(LocalStore(tmp_path), selection))
    assert [image.row for image in found] == selection.rows(0, COUNT)
    for image in found:
        np.testing.assert_array_equal(image.pixels(), pixels(image.row.index))


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    generate(tmp_path, layout("webdataset"), Selection.of_seed(CLASSES, 5))
    files = sorted(map(str, tmp_path.glob("*.tar")))
    assert [Path(file).name for file in files] == ["000000.tar", "000001.tar", "000002.tar"]
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [f"{i:06d}" for i in range(COUNT)]
    for index, sample in enumerate(samples):
        np.testing.assert_array_equal(sample["png"], pixels(index))
        assert sample["cls"] == CLASSES[index]
        expected = {"index": index, "class": CLASSES[index], "seed": 5, "height": 5, "width": 7}
        assert sample["json"] == expected


def test_prompts_are_texts(tmp_path: Path) -> None:
    prompts = [f"a dög {index}" for index in range(COUNT)]
    generate(tmp_path / "a", layout("webdataset"), Selection.of_seed(prompts, 0))
    files = sorted(map(str, (tmp_path / "a").glob("*.tar")))
    read = webdataset.WebDataset(files, shardshuffle=False).decode("rgb8")
    assert [sample["txt"] for sample in read] == prompts
    generate(tmp_path / "b", layout("parquet"), Selection.of_seed(prompts, 0))
    assert pyarrow.parquet.read_table(tmp_path / "b" / "data")["prompt"].to_pylist() == prompts


def test_parquet_has_images_that_datasets_decodes(tmp_path: Path) -> None:
    generate(tmp_path, layout("parquet"), Selection.of_seed(CLASSES, 5))
    files = sorted((tmp_path / "data").iterdir())
    assert len(files) == 3
    table = pyarrow.parquet.read_table(files[1])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features.keys() == set(table.column_names)
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == [4, 5, 6, 7]
    assert [row["label"] for row in rows] == CLASSES[4:8]
    image = np.asarray(Image.open(io.BytesIO(rows[0]["image"]["bytes"])))
    np.testing.assert_array_equal(image, pixels(4))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_npz_is_what_numpy_reads(channels: int, tmp_path: Path) -> None:
    generate(tmp_path, layout("npz"), Selection.of_seed(CLASSES, 5), channels=channels)
    samples = np.load(tmp_path / "samples.npz")
    expected = np.stack([pixels(index, channels) for index in range(COUNT)])
    np.testing.assert_array_equal(samples["arr_0"], expected)
    assert samples["arr_1"].tolist() == CLASSES


@pytest.mark.parametrize("kind", SHARDED)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_shards_are_errors(
    kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp(kind)
    selection = Selection.of_seed(CLASSES, 0)
    generate(folder, layout(kind), selection)
    shard = min(p for p in folder.rglob("*") if p.suffix in (".tar", ".parquet", ".npz"))
    content = bytearray(shard.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    shard.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        for image in format_of(layout(kind)).read(LocalStore(folder), selection):
            image.pixels()
    except DisaError:
        pass


@pytest.mark.parametrize("kind", SHARDED)
def test_a_run_in_shards_keeps_its_length(kind: str, tmp_path: Path) -> None:
    generate(tmp_path, layout(kind), Selection.of_seed(CLASSES, 0))
    with pytest.raises(DisaError, match="--first-image"):
        generate(tmp_path, layout(kind), Selection.of_seed([*CLASSES, 1], 0))
    with pytest.raises(DisaError, match="other format"):
        generate(tmp_path, layout("folder"), Selection.of_seed(CLASSES, 0))


def test_latents_need_a_format_that_can_hold_them(tmp_path: Path) -> None:
    selection = Selection.of_seed([1], 0)
    unit = Unit(0, selection.rows(0, 1), [0])
    file = encode_latents(np.zeros((2, 3, 3), np.float32))
    store = LocalStore(tmp_path)
    for kind in ("parquet", "npz"):
        with pytest.raises(DisaError, match="latents"):
            format_of(layout(kind)).write(store, unit, {0: file})
    format_of(layout("webdataset")).write(store, unit, {0: file})


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_lossless_images(kind: str, channels: int) -> None:
    file = encode_image(pixels(0, channels), ImageType(kind))
    assert file.suffix == kind
    found = np.asarray(Image.open(io.BytesIO(file.data)))
    if kind == "webp" and channels == 1:
        found = found[..., :1]  # WebP has no grey
    np.testing.assert_array_equal(found.reshape(5, 7, channels), pixels(0, channels))


def test_lossy_images_obey_the_quality() -> None:
    sizes = [
        len(encode_image(np.tile(pixels(0), (9, 9, 1)), ImageType(kind, quality)).data)
        for kind in ("jpeg", "webp")
        for quality in (20, 90)
    ]
    assert sizes[0] < sizes[1]
    assert sizes[2] < sizes[3]
    for kind, channels in (("jpeg", 4), ("png", 2)):
        with pytest.raises(DisaError, match="channels"):
            encode_image(pixels(0, channels), ImageType(kind))
    with pytest.raises(DisaError, match="no quality"):
        ImageType("png", 90)
