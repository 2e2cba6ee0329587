from typing import Any

import pytest

from disa.errors import DisaError
from disa.runtime.outputs.selection import MAX_INDEX, ImageRow, Selection, check_indices

SEED = Selection.of_seed([4, 5, 6], seed=7, first_image=10)
LISTED = Selection([8, 3], ["a cat", "a dog"], [1, 2])


def test_rows() -> None:
    assert SEED.rows(1, 9) == [ImageRow(11, 5, 7), ImageRow(12, 6, 7)]
    assert LISTED.rows(0, 1) == [ImageRow(8, "a cat", 1)]
    assert SEED.rows(3, 4) == []
    assert Selection.of_seed([4], 7).rows(0, 1) == [ImageRow(0, 4, 7)]


def test_positions() -> None:
    assert [SEED.position(index) for index in (9, 10, 12, 13)] == [None, 0, 2, None]
    assert [LISTED.position(index) for index in (3, 8, 0)] == [1, 0, None]


@pytest.mark.parametrize("selection", [SEED, LISTED])
def test_json(selection: Selection) -> None:
    content = selection.to_json()
    assert ("first_image" in content) == (selection is SEED)
    assert ("seeds" in content) == (selection is LISTED)
    assert Selection.from_json(content, 7) == selection


def test_a_record_without_a_first_image_begins_at_0() -> None:
    assert Selection.from_json({"conditions": [1]}, 3).rows(0, 1) == [ImageRow(0, 1, 3)]


@pytest.mark.parametrize(
    ("content", "seed"),
    [
        ({"conditions": []}, 0),
        ({"conditions": "cat"}, 0),
        ({"conditions": [1, "cat"]}, 0),
        ({"conditions": [True]}, 0),
        ({"conditions": [1], "first_image": -1}, 0),
        ({"conditions": [1], "first_image": 1.0}, 0),
        ({"conditions": [1], "first_image": True}, 0),
        ({"conditions": [1], "first_image": MAX_INDEX + 1}, 0),
        ({"conditions": [1, 2], "indices": [5, 5]}, 0),
        ({"conditions": [1, 2], "indices": [5]}, 0),
        ({"conditions": [1, 2], "seeds": [5]}, 0),
        ({"conditions": [1, 2], "seeds": [5, -1]}, 0),
        ({"conditions": [1]}, "0"),
        ({"conditions": [1]}, -1),
    ],
)
def test_records_that_do_not_fit(content: dict[str, Any], seed: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Selection.from_json(content, seed)
    Selection.from_json({"conditions": [1], "first_image": MAX_INDEX}, 0)


def test_what_differs_is_named_where_both_have_images() -> None:
    assert SEED.differences(Selection.of_seed([4, 5], 7, 10)) == []
    assert SEED.differences(Selection.of_seed([4, 5], 7, 11)) == ["image numbers"]
    assert SEED.differences(Selection.of_seed([4, 0], 8, 10)) == ["classes", "seed"]
    assert LISTED.differences(Selection([8, 3], ["a cat", "a hen"], [1, 3])) == ["prompts", "seeds"]
    assert LISTED.differences(Selection([8], ["a cat"], [1])) == []
    assert LISTED.differences(Selection([8], ["a hen"], [1])) == ["prompts"]
    assert Selection([8], ["a hen"], [1]).differences(LISTED) == ["prompts"]


def test_numbers_fit_into_64_bits() -> None:
    assert MAX_INDEX.bit_length() == 63


def test_numbers_are_given_once() -> None:
    check_indices([3, 1, 2])
    with pytest.raises(DisaError, match="image 1 is selected twice"):
        check_indices([3, 1, 2, 1])
