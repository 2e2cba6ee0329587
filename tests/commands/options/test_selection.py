import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from disa.commands.options.selection import (
    Conditions,
    SelectionOptions,
    prompt_metadata,
    select_images,
)
from disa.errors import DisaError
from disa.runtime.outputs.selection import ImageRow, Selection

NAMES = ["cat", "dog", "boat"]


def classes(count: int = 10, names: Sequence[str] | None = None) -> Conditions:
    return Conditions("mar", count, names, list)


PROMPTS = Conditions("harmon", None, None, lambda prompts: [text.strip() for text in prompts])


def select(conditions: Conditions, **options: Any) -> Selection:
    return select_images(SelectionOptions(**options), conditions)


def test_classes_are_spread() -> None:
    assert select(classes(), num=64).conditions == [i % 10 for i in range(64)]
    spread = select(classes(1000), num=64).conditions
    assert len(set(spread)) == 64
    assert max(spread) > 950  # type: ignore[operator]
    assert select(classes(), num=5, classes=["3", "7"]).conditions == [3, 7, 3, 7, 3]
    assert select(classes(), classes=["3", "7"]).conditions == [3, 7]


@pytest.mark.parametrize("count", [4, 10, 16, 1000])
@pytest.mark.parametrize("first", [None, 0, 3])
def test_the_default_number_is_independent_of_the_classes(count: int, first: int | None) -> None:
    assert len(select(classes(count), first_image=first)) == 16


def test_a_number_of_each() -> None:
    conditions = select(classes(4), per_class=3).conditions
    assert sorted(conditions) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert select(classes(3, NAMES), per_class=2, classes=["boat", "cat"]).conditions == [2, 0] * 2
    assert select(PROMPTS, per_class=2, prompts=["a ", "b"]).conditions == ["a", "b"] * 2
    with pytest.raises(DisaError, match="leave out --num"):
        select(classes(), per_class=3, num=3)


@pytest.mark.parametrize("cut", [3, 10, 14, 25])
def test_parts_are_parts_of_the_whole(cut: int) -> None:
    whole = select(classes(), num=30, seed=4)
    parts = [
        select(classes(), num=cut, first_image=0, seed=4),
        select(classes(), num=30 - cut, first_image=cut, seed=4),
    ]
    rows = [row for part in parts for row in part.rows(0, len(part))]
    assert rows == whole.rows(0, 30)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "index,class,seed\n7,dog,1\n3,0,\n"),
        ("rows.jsonl", '{"index": 7, "class": "dog", "seed": 1}\n\n{"class": 0, "index": 3}\n'),
    ],
)
def test_rows(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    selection = select(classes(3, NAMES), rows=tmp_path / name, seed=9)
    assert selection.rows(0, 5) == [ImageRow(7, 1, 1), ImageRow(3, 0, 9)]
    assert [selection.position(index) for index in (7, 3, 0)] == [0, 1, None]


def test_rows_of_prompts(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt\n"a dog, asleep"\na cat\n')
    rows = select(PROMPTS, rows=tmp_path / "rows.csv").rows(0, 2)
    assert rows == [ImageRow(0, "a dog, asleep", 0), ImageRow(1, "a cat", 0)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "must have 1 to"),
        ("index,class\n1,0\n1,1\n", "image 1 is selected twice"),
        ("index,class\n-1,0\n", "not a whole number"),
        ("index,class\nx,0\n", "not a whole number"),
        ("index,class,cfg\n1,0,3\n", "has 'cfg'"),
        ("index,seed\n1,0\n", "has no class"),
        ("class\nboot\n", "did you mean 'boat'"),
        ("class,seed\n1,0,3\n", "row 1 has more values than the header: put text with commas in"),
        ("class\n1\0\n", "class"),
    ],
)
def test_unusable_rows(content: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(content)
    with pytest.raises(DisaError, match=told):
        select(classes(3, NAMES), rows=tmp_path / "rows.csv")
    with pytest.raises(DisaError, match="leave out --num and --class"):
        select(classes(3, NAMES), rows=tmp_path / "rows.csv", num=3, classes=["1"])


@pytest.mark.parametrize("line", ["{", "[]", "3", "[" * 10000, '{"index": 1.5, "class": 1}'])
def test_unusable_lines(line: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(line)
    with pytest.raises(DisaError):
        select(classes(), rows=tmp_path / "rows.jsonl")


@pytest.mark.parametrize("value", ['["a dog"]', '{"text": "a dog"}', "5", "true"])
def test_a_prompt_in_a_line_is_text(value: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"prompt": {value}}}')
    with pytest.raises(DisaError, match="row 1 is not text"):
        select(PROMPTS, rows=tmp_path / "rows.jsonl")


@pytest.mark.parametrize("value", ["[1]", "1.0", "true"])
def test_a_class_in_a_line_is_a_number_or_a_name(value: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"class": {value}}}')
    with pytest.raises(DisaError, match="row 1 is not a number or a name"):
        select(classes(), rows=tmp_path / "rows.jsonl")


def test_metadata_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    lines = [{"tag": "single_object", "prompt": "a bench"}, {"tag": "counting", "prompt": "a cow"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = SelectionOptions(prompts=["a dog"], prompt_file=file)
    assert prompt_metadata(options) == [{"prompt": "a dog"}, *lines]


def test_metadata_of_a_list_of_prompts(tmp_path: Path) -> None:
    """Without the tags, GenEval's evaluator does not know what to look for."""
    items = [{"tag": "counting", "prompt": "two cows"}, "a bench"]
    (tmp_path / "prompts.json").write_text(json.dumps(items))
    options = SelectionOptions(prompt_file=tmp_path / "prompts.json")
    assert prompt_metadata(options) == [items[0], {"prompt": "a bench"}]


def test_lines_contain_other_separators(tmp_path: Path) -> None:
    line = {"prompt": "a dog\u2028in a hat", "tag": "x"}
    text = json.dumps(line, ensure_ascii=False) + "\n"
    file = tmp_path / "prompts.jsonl"
    file.write_text(text, encoding="utf-8")
    assert prompt_metadata(SelectionOptions(prompt_file=file)) == [line]
    file.write_text(text.replace('"tag": "x"', '"seed": 4'), encoding="utf-8")
    assert select(PROMPTS, rows=file).rows(0, 2) == [ImageRow(0, line["prompt"], 4)]
