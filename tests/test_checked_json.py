import re
from typing import Any

import pytest

from disa import checked_json
from disa.checked_json import JSONError, Value, load


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": 1, "a": 1}', "a duplicate name"),
        (b"NaN", "not finite"),
        (b"[1e999]", "not finite"),
        (b"9007199254740993", "a number that is too large"),
        (b"-9007199254740993", "a number that is too large"),
        (b'"a\\u0007"', "control characters"),
        (b'{"\\ud800": 1}', "control characters"),
        (b"[" * 18 + b"]" * 18, "too many nested levels"),
    ],
)
def test_what_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(JSONError, match=words) as caught:
        load(data, "it")
    assert str(caught.value).startswith("it ")


def test_what_is_just_allowed() -> None:
    assert load(b"9007199254740992", "it").item == 2**53
    assert load(b"[" * 17 + b"]" * 17, "it").item
    assert load(b'"tab\\t line\\n"', "it").item == "tab\t line\n"


def value(item: Any) -> Value:
    return Value("it", item)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checked_json.integer, [0, -3], [True, 1.0, "1", None]),
        (checked_json.size, [0, 7], [-1, False]),
        (checked_json.boolean, [True, False], [1, None]),
        (checked_json.text, ["", "x" * 65536], ["x" * 65537, 3]),
        (checked_json.any_object, [{}, {"a": 1}], [[], None]),
        (checked_json.choice("a", "b"), ["a", "b"], ["c", None, ""]),
        (checked_json.optional(checked_json.size), [None, 4], [-1, "x"]),
        (checked_json.list_of(checked_json.size), [[], [1, 2]], [[-1], (1,), {}]),
        (checked_json.matching(re.compile("[a-z]+"), "a name"), ["abc"], ["aBc", "", "ab\n", 3]),
    ],
)
def test_checks(check: Any, good: list[Any], bad: list[Any]) -> None:
    for item in good:
        found = check(value(item))
        assert found == (tuple(item) if isinstance(item, list) else item)
    for item in bad:
        with pytest.raises(JSONError, match=r" it |^it "):
            check(value(item))


def test_long_lists_are_refused() -> None:
    assert len(checked_json.list_of(checked_json.integer)(value([0] * 65536))) == 65536
    with pytest.raises(JSONError, match="a list"):
        checked_json.list_of(checked_json.integer)(value([0] * 65537))


def test_where_something_is_wrong() -> None:
    whole = value({"sizes": [1, -2], "n" * 300: 1})
    with pytest.raises(JSONError, match=r"^item 1 in sizes in it should be a size$"):
        whole.get("sizes", checked_json.list_of(checked_json.size))
    with pytest.raises(JSONError, match=r"^it lacks other$"):
        whole.get("other", checked_json.size)
    assert whole.get("other", checked_json.size, 5) == 5
    with pytest.raises(JSONError) as caught:
        whole.get("n" * 300, checked_json.text)
    assert len(str(caught.value)) < 200
    table = checked_json.table_of(lambda key, item: (key, checked_json.size(item)))
    assert table(value({"a": 1})) == {"a": ("a", 1)}
    with pytest.raises(JSONError, match=r"^a in it should be a size"):
        table(value({"a": -1}))
