import json
from pathlib import Path
from typing import Any

import pytest

from disa.errors import DamagedFile, DisaError
from disa.exporter.checkpoints.tokenizer import read_tokenizer
from disa.runtime.families.conditions import tokenizer_check
from disa.runtime.families.conditions.prompt import Tokenizer
from disa.runtime.families.conditions.tokenizer_check import check_tokenizer

from ....fuzzing import frugal
from ....tiny_tokenizer import write_vocabulary


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = write_vocabulary(tmp_path_factory.mktemp("text"))
    found: dict[str, Any] = json.loads(read_tokenizer(folder, 200))
    return found


def replacing(letter: str, times: int) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": letter}, "content": letter * times}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"normalizer": replacing("a", 5000)}, "more than 4096 letters"),
        ({"normalizer": replacing("a", 100)}, "100 times as long"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replacing("a", 10)] * 9}},
            "1000000000 times as long",
        ),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [replacing("a", 1)] * 99}},
            "its normalizer has 199 rules",
        ),
    ],
)
def test_rules_that_no_real_tokenizer_has(
    changes: dict[str, Any], told: str, content: dict[str, Any]
) -> None:
    with frugal(), pytest.raises(DamagedFile, match=told):
        Tokenizer(json.dumps({**content, **changes}).encode())


@pytest.mark.parametrize("merges", [[["a", "b"]], ["a b"], [3], [[]], [["##a", "b"]]])
@pytest.mark.parametrize("prefix", ["##", ""])
def test_merges_that_would_make_the_library_panic(
    merges: list[Any],
    prefix: str,
    content: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    vocabulary = {"a": 0, "b": 1}
    model = {
        **content["model"],
        "vocab": vocabulary,
        "continuing_subword_prefix": prefix,
        "merges": merges,
    }
    with pytest.raises(DamagedFile, match="a merge of its model"):
        Tokenizer(json.dumps({**content, "model": model}).encode())
    assert "panicked" not in capfd.readouterr().err


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 99999, b'{"normalizer": 3}'])
def test_what_is_no_tokenizer(data: bytes) -> None:
    with pytest.raises(DamagedFile):
        Tokenizer(data)


def test_nesting_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    nested: dict[str, Any] = {}
    for _ in range(30):
        nested = {"normalizers": nested}
    with pytest.raises(DamagedFile, match="nested too deeply"):
        check_tokenizer(json.dumps({"model": {}, "normalizer": nested}).encode())
    monkeypatch.setattr(tokenizer_check, "MAX_BYTES", 1)
    with pytest.raises(DamagedFile, match="2 bytes"):
        check_tokenizer(b"{}")


def sequence(*rules: dict[str, Any]) -> dict[str, Any]:
    return {"model": {}, "normalizer": {"type": "Sequence", "normalizers": list(rules)}}


def prepending(letters: int) -> dict[str, Any]:
    return {"type": "Prepend", "prepend": "a" * letters}


def checked(content: Any) -> str:
    """What is told, or nothing."""
    try:
        check_tokenizer(json.dumps(content).encode())
    except DamagedFile as error:
        return str(error)
    return ""


def test_limits_may_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    content = sequence(prepending(3), replacing("a", 5), {"type": "Lowercase", "content": "aaaa"})
    assert "can make a text 15 times as long" not in checked(content)
    for limit, reached in (("GROWTH", 15), ("TEXT", 9), ("RULES", 5), ("DEPTH", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(tokenizer_check, f"MAX_{limit}", reached)
            assert checked(content) == ""
            patch.setattr(tokenizer_check, f"MAX_{limit}", reached - 1)
            assert checked(content)
    size = len(json.dumps(content).encode())
    monkeypatch.setattr(tokenizer_check, "MAX_BYTES", size)
    assert checked(content) == ""
    monkeypatch.setattr(tokenizer_check, "MAX_BYTES", size - 1)
    assert f"it has {size} bytes, but at most {size - 1} are allowed" in checked(content)


def test_rules_of_all_sections_multiply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_check, "MAX_GROWTH", 1)
    content = {"model": {}, "normalizer": prepending(2), "decoder": replacing("a", 3)}
    assert "can make a text 6 times as long" in checked(content)
    shorter = sequence(prepending(0), {"type": "Replace", "content": 7}, {"type": None})
    assert checked(shorter) == ""


@pytest.mark.parametrize(
    ("merges", "prefix", "fits"),
    [
        (["a b", ["b", "a"]], "", True),
        ([["a", "##b"]], "##", True),
        ([["a", "b"]], "##", False),
        ([["a", "##c"]], "##", False),
        (["a c"], "", False),
        (["c a"], "", False),
        (["a a"], "", False),
        (["a b c"], "", False),
        ([["a"]], "", False),
        ([["a", 3]], "", False),
        ([[3, "a"]], "", False),
    ],
)
def test_both_tokens_of_a_merge_and_its_result_are_known(
    merges: list[Any], prefix: str, fits: bool
) -> None:
    vocabulary = dict.fromkeys(("a", "b", "ab", "ba", "##b", "##a"), 0)
    model = {"vocab": vocabulary, "merges": merges, "continuing_subword_prefix": prefix}
    assert ("a merge of its model" in checked({"model": model})) is not fits


def test_padding_to_any_length_is_left_out(content: dict[str, Any]) -> None:
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    with frugal():
        ids = Tokenizer(json.dumps({**content, "padding": padding}).encode(), 200).encode("a dog")
    assert len(ids) < 60


def test_tokens_of_another_model(content: dict[str, Any]) -> None:
    with pytest.raises(DamagedFile, match="but the model has 50"):
        Tokenizer(json.dumps(content).encode(), 50)


@pytest.mark.parametrize("prompt", ["a \ud83d dog", "a" * (1 << 17)])
def test_prompts_that_are_no_text(prompt: str, content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DisaError, match=r"a lone surrogate at character 2|has 131072 characters"):
        Tokenizer(json.dumps(content).encode()).encode(prompt)
