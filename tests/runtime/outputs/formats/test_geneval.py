"""Folders for GenEval's evaluator."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.runtime.outputs.formats.format import Unit
from disa.runtime.outputs.formats.geneval import GenEvalFormat, GenEvalNaming, write_metadata
from disa.runtime.outputs.image_files import ImageFile
from disa.runtime.outputs.selection import Selection
from disa.runtime.outputs.store import LocalStore


def test_a_folder_for_each_prompt() -> None:
    naming = GenEvalNaming(8)
    assert naming.name(7) == "00007/samples/00000"
    assert naming.name(8) == "00000/samples/00001"
    assert naming.name(23) == "00007/samples/00002"


@given(st.integers(1, 10**6), st.integers(0, 10**8))
def test_a_name_is_read_as_its_number(prompts: int, index: int) -> None:
    naming = GenEvalNaming(prompts)
    assert naming.index(naming.name(index)) == index


@pytest.mark.parametrize(
    "name",
    [
        "00008/samples/00000",
        "00009/samples/00000",
        "0007/samples/00000",
        "000007/samples/00000",
        "00007/samples/000001",
        "00007/sample/00000",
        "00007/samples",
        "000007",
    ],
)
def test_names_that_no_image_has(name: str) -> None:
    assert GenEvalNaming(8).index(name) is None


def test_only_the_folders_of_the_prompts_are_looked_into(tmp_path: Path) -> None:
    folders = GenEvalNaming(2).folders(range(4))
    assert folders == {"00000", "00000/samples", "00001", "00001/samples"}
    assert GenEvalNaming(9).folders([7, 9, 16]) == {
        *("00000", "00000/samples", "00007", "00007/samples")
    }


def test_metadata_of_the_prompts_belong_to_the_run(tmp_path: Path) -> None:
    store, kind = LocalStore(tmp_path), GenEvalFormat(2, "png")
    selection = Selection.of_seed(["a dog", "a cat", "a dog"], 0)
    files = {offset: ImageFile("png", b"x") for offset in range(3)}
    kind.write(store, Unit(0, selection.rows(0, 3), range(3)), files)
    write_metadata(store, [{"prompt": "a dog"}, {"prompt": "a cat"}, {"prompt": "a bird"}])
    lines = [(tmp_path / f"{i:05d}" / "metadata.jsonl").read_text() for i in range(3)]
    assert [json.loads(line)["prompt"] for line in lines] == ["a dog", "a cat", "a bird"]
    assert all(line.endswith("}\n") for line in lines)
    expected = {"00000/samples/00000.png", "00000/samples/00001.png", "00001/samples/00000.png"}
    metadata = {"00000/metadata.jsonl", "00001/metadata.jsonl"}
    assert set(kind.owned(store, selection)) == expected | metadata
    (tmp_path / "00001" / "metadata.jsonl").unlink()
    assert set(kind.owned(store, selection)) == expected | {"00000/metadata.jsonl"}
