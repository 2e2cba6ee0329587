import json
from pathlib import Path

import numpy as np
import pytest

from disa.errors import DamagedFile, DisaError
from disa.exporter.checkpoints.tokenizer import read_tokenizer
from disa.runtime.families.conditions import prompt as module
from disa.runtime.families.conditions.prompt import (
    MAX_PROMPT_TOKENS,
    EncodedPrompt,
    PromptBatch,
    Tokenizer,
    prompt_text,
    read_prompts,
)

from ....tiny_tokenizer import write_vocabulary


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(read_tokenizer(write_vocabulary(tmp_path_factory.mktemp("text")), 200))


def test_the_template() -> None:
    assert prompt_text("a {} dog") == (
        "<|im_start|>user\nGenerate an image: a {} dog<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_text(None) == (
        "<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_token_ids(tokenizer: Tokenizer) -> None:
    text, ids = prompt_text("a dog"), tokenizer.encode("a dog")
    assert tokenizer._backend.decode(ids, skip_special_tokens=False) == text
    assert len(ids) < len(text) / 2
    assert max(ids) < 200


def test_equal_prompts_are_kept_once(tokenizer: Tokenizer) -> None:
    batch = PromptBatch.of_prompts(
        [EncodedPrompt.of(tokenizer, prompt) for prompt in ("a dog", "a cat", "a dog")], guided=True
    )
    assert batch.index.tolist() == [[0, 1, 0], [2, 2, 2]]
    assert batch.length.tolist() == [len(tokenizer.encode(p)) for p in ("a dog", "a cat", None)]
    for row, prompt in enumerate(("a dog", "a cat", None)):
        ids = tokenizer.encode(prompt)
        assert batch.input_ids[row].tolist() == ids + [0] * (batch.length.max() - len(ids))


def test_without_guidance_there_is_no_unconditional_prompt(tokenizer: Tokenizer) -> None:
    batch = PromptBatch.of_prompts([EncodedPrompt.of(tokenizer, "a dog")], guided=False)
    assert batch.index.tolist() == [[0]]
    assert len(batch.input_ids) == 1


def test_padded_rows_with_a_mask() -> None:
    ids = np.array([[5, 6, 7], [5, 6, 9], [8, 9, 9], [8, 9, 9]])
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    batch = PromptBatch.of_masked(ids, mask, guidance=2)
    assert batch.index.tolist() == [[0, 1], [2, 2]]
    assert batch.length.tolist() == [3, 2, 1]
    with pytest.raises(DisaError, match="on the right"):
        PromptBatch.of_masked(ids, mask[:, ::-1], guidance=2)
    with pytest.raises(DisaError, match="halved"):
        PromptBatch.of_masked(ids[:3], mask[:3], guidance=2)
    with pytest.raises(DisaError, match="no tokens"):
        PromptBatch.of_masked(ids, np.zeros_like(mask), guidance=1)
    for none in (ids[:0], ids[:, :2]):
        with pytest.raises(DisaError, match="do not match"):
            PromptBatch.of_masked(none, mask[: len(none)], guidance=1)
    one = PromptBatch.of_masked(ids, mask, guidance=1)
    assert one.index.tolist() == [[0, 1, 2, 2]]
    assert one.input_ids.tolist() == [[5, 6, 7], [5, 6, 0], [8, 0, 0]]
    with pytest.raises(DisaError, match="no tokens"):
        PromptBatch.of([[[1], []]])
    with pytest.raises(DisaError, match="no tokens"):
        PromptBatch.of([[]])


def test_token_ids_of_another_model() -> None:
    batch = PromptBatch.of([[[1, 0, 199]]])
    batch.check(200)
    told = "token ids from 0 to 199, but the model has 0 to 198: it is another model's tokenizer"
    with pytest.raises(DisaError, match=told):
        batch.check(199)
    with pytest.raises(DisaError, match="token ids from -1 to 3"):
        PromptBatch.of([[[-1, 3]]]).check(4)


def test_how_long_a_prompt_may_be(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokenizer.encode("a dog")
    monkeypatch.setattr(module, "MAX_PROMPT_TOKENS", len(ids))
    monkeypatch.setattr(module, "MAX_PROMPT_LETTERS", 5)
    assert tokenizer.encode("a dog") == ids
    with pytest.raises(DisaError, match="a prompt has 6 characters, but at most 5 are supported"):
        tokenizer.encode("a dogs")
    monkeypatch.setattr(module, "MAX_PROMPT_TOKENS", len(ids) - 1)
    with pytest.raises(DisaError, match=f"has {len(ids)} tokens, but at most {len(ids) - 1} are"):
        tokenizer.encode("a dog")


def test_a_prompt_that_is_too_long(tokenizer: Tokenizer) -> None:
    with pytest.raises(DisaError, match="begins 'the the"):
        tokenizer.encode("the " * MAX_PROMPT_TOKENS)


def test_a_plan_whose_tokenizer_is_none() -> None:
    with pytest.raises(DisaError, match="not usable: it has no model"):
        Tokenizer(b"{}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.txt", "a dog\n\n  a cat \r\n"),
        ("p.json", json.dumps(["a dog", {"prompt": "a cat", "id": 3}])),
        ("p.jsonl", '"a dog"\n\n{"prompt": "a cat"}\n'),
    ],
)
def test_files_of_prompts(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, newline="")
    assert read_prompts(tmp_path / name) == ["a dog", "a cat"]


@pytest.mark.parametrize("separator", ["\u2028", "\x85"])
def test_prompts_contain_other_separators(tmp_path: Path, separator: str) -> None:
    """Captions from the web do: such a prompt is one, not two."""
    prompts = [f"a dog{separator}in a hat", "a cat"]
    for name, lines in (
        ("p.txt", prompts),
        ("p.jsonl", [json.dumps(prompt, ensure_ascii=False) for prompt in prompts]),
    ):
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        assert read_prompts(tmp_path / name) == prompts


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("p.txt", b"", "no prompts"),
        ("p.txt", b"\xff\xfea", "UTF-8"),
        ("p.json", b"[", "valid JSON"),
        ("p.json", b"{}", "list of prompts"),
        ("p.json", b'["a", 3]', "prompt 2"),
        ("p.json", b'["a", {"text": "b"}]', "prompt 2"),
        ("p.jsonl", b'"a"\nb\n', "valid JSON"),
        ("p.jsonl", b'" "', "prompt 1"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_files_that_hold_no_prompts(
    tmp_path: Path, name: str, data: bytes | None, told: str
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DisaError, match=told) as raised:
        read_prompts(path)
    assert str(path) in str(raised.value)


def test_the_model_must_know_every_token(tmp_path: Path) -> None:
    data = bytes(read_tokenizer(write_vocabulary(tmp_path / "text"), 200))
    content = json.loads(data)
    ids = [*content["model"]["vocab"].values(), *(each["id"] for each in content["added_tokens"])]
    Tokenizer(data, max(ids) + 1)
    with pytest.raises(DamagedFile, match=f"tokens up to {max(ids)}, but the model has"):
        Tokenizer(data, max(ids))
