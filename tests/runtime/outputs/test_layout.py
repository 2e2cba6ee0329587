from typing import Any

import pytest

from disa.errors import DisaError
from disa.runtime.outputs.image_files import ImageType
from disa.runtime.outputs.layout import FORMATS, Layout


@pytest.mark.parametrize("name", FORMATS)
def test_json(name: str) -> None:
    layout = Layout(name, shard_images=20, unit_images=4, prompts=3)
    content = layout.to_json()
    assert layout.sharded is (name in ("webdataset", "parquet", "npz"))
    assert ("shard_images" in content) is layout.sharded
    assert ("prompts" in content) is (name == "geneval")
    again = Layout.from_json(content)
    assert again.to_json() == content
    if layout.sharded:
        assert (again.shard_images, again.unit_images) == (20, 4)


def test_a_folder_of_png_is_the_default() -> None:
    assert Layout() == Layout("folder", ImageType("png"), 10_000, unit_images=1, prompts=1)


@pytest.mark.parametrize("field", ["shard_images", "unit_images", "prompts"])
def test_counts_begin_at_1(field: str) -> None:
    Layout(**{field: 1})
    with pytest.raises(DisaError, match="at least one"):
        Layout(**{field: 0})


@pytest.mark.parametrize("wrong", [1.0, "1", True, None])
def test_counts_are_whole_numbers(wrong: Any) -> None:
    content = Layout("geneval").to_json() | {"prompts": wrong}
    with pytest.raises(TypeError):
        Layout.from_json(content)


def test_what_does_not_go_together() -> None:
    with pytest.raises(DisaError, match="the format must be one of folder, geneval"):
        Layout("tar")
    with pytest.raises(DisaError, match="npz holds pixels"):
        Layout("npz", ImageType("jpeg", 90))
    with pytest.raises(TypeError):
        Layout.from_json({"format": "folder", "image_type": "jpeg", "quality": 90.0})
    jpeg = Layout("folder", ImageType("jpeg", 90))
    assert Layout.from_json(jpeg.to_json()) == jpeg
