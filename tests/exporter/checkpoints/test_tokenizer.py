import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from disa.errors import DisaError
from disa.exporter.checkpoints.tokenizer import MEMBER, SPECIAL_TOKENS, read_tokenizer

from ...tiny_tokenizer import write_vocabulary

TEXT = "<|im_start|>user\na dog's  left 42<|im_end|>\n"


def test_vocabulary_and_merges_become_one_document(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path / "old")
    tokenizer = Tokenizer.from_buffer(read_tokenizer(folder, 200))
    ids = tokenizer.encode(TEXT).ids
    size = len(json.loads((folder / "vocab.json").read_text()))
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [size, size + 1, size + 2]
    assert ids[0] == size + 1
    assert ids.count(size + 2) == 1
    assert tokenizer.decode(ids, skip_special_tokens=False) == TEXT.replace("'", "")


def test_numbers_are_cut_into_digits_and_contractions_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_buffer(read_tokenizer(write_vocabulary(tmp_path), 200))
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("the dog's 42\n\n x")]
    assert pieces == ["the", "Ġdog", "'s", "Ġ", "4", "2", "ĊĊ", "Ġx"]


def test_one_document_is_taken_as_it_is(tmp_path: Path) -> None:
    data = read_tokenizer(write_vocabulary(tmp_path / "old"), 200)
    (tmp_path / MEMBER).write_bytes(data)
    assert read_tokenizer(tmp_path, 200) == data
    assert read_tokenizer(tmp_path / MEMBER, 200) == data


def test_special_tokens_of_the_configuration(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path)
    size = len(json.loads((folder / "vocab.json").read_text()))
    names = ["<z>", "<y>", "<|im_end|>", "<|im_start|>"]
    added = {str(size + i): {"content": name} for i, name in enumerate(names)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = Tokenizer.from_buffer(read_tokenizer(folder, 200))
    assert tokenizer.encode("<y><z>").ids == [size + 1, size]


def test_special_tokens_with_other_ids_than_the_next_ones(tmp_path: Path) -> None:
    """They would get the next ones, and the model would read other tokens."""
    folder = write_vocabulary(tmp_path)
    size = len(json.loads((folder / "vocab.json").read_text()))
    added = {str(size + 2 * n): {"content": token} for n, token in enumerate(SPECIAL_TOKENS)}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(DisaError, match=r"'<\|im_start\|>' does not follow the vocabulary"):
        read_tokenizer(folder, 200)


@pytest.mark.parametrize("added", [(), ("<|im_start|>",)])
def test_a_tokenizer_without_the_chat_template(tmp_path: Path, added: tuple[str, ...]) -> None:
    """That of another language model would cut the template into letters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(["a dog"], trainer)
    tokenizer.add_special_tokens(list(added))
    tokenizer.save(str(tmp_path / MEMBER))
    absent = " and ".join(token for token in SPECIAL_TOKENS[1:] if token not in added)
    with pytest.raises(DisaError, match=re.escape(f"does not read {absent} as one token")):
        read_tokenizer(tmp_path, 1000)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("vocab.json", None, "neither tokenizer.json nor vocab.json"),
        ("vocab.json", "[]", "JSON object"),
        ("vocab.json", "{", "not valid JSON"),
        ("vocab.json", '{"a": "b"}', "number for each token"),
        ("vocab.json", '{"a": 0}', "do not match"),
        ("merges.txt", "a b c", "two tokens"),
        ("merges.txt", "a \u20ac\u20ac", "do not match"),
        ("merges.txt", b"\xff\xfe", "UTF-8"),
        ("tokenizer.json", "{}", "not a tokenizer"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": 1}}', "table of tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": [5]}', "table of tokens"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": 5}}}', "not text"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str | bytes | None, told: str) -> None:
    folder = write_vocabulary(tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    with pytest.raises(DisaError, match=told) as raised:
        read_tokenizer(folder, 200)
    assert str(folder) in str(raised.value)


def test_the_tokenizer_of_a_larger_model(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="of another model"):
        read_tokenizer(write_vocabulary(tmp_path), 50)
