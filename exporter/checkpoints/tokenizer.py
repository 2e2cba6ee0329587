"""Converts the tokenizer of a language model from its published folder to one JSON document."""

import json
from pathlib import Path
from typing import Any

from ...errors import DamagedFile, DisaError
from ...files import read_text
from ...optional import first_line, import_failed
from ...runtime.families.conditions.tokenizer_check import check_merges, check_tokenizer
from ...runtime.families.counts import LARGEST

PRE_TOKENS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2's text split before byte-pair encoding: words, single digits, punctuation, blanks."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TOKENS = SPECIAL_TOKENS[1:]
"""The special tokens of the chat template, in which every prompt is put."""
MAX_FILE_BYTES = 64 << 20
MAX_TOKENS = 1 << 24
MEMBER = "tokenizer.json"
"""The plan's member with the tokenizer."""


def read_tokenizer(folder: Path | str, vocab_size: int) -> bytes:
    """Read the tokenizer of a folder, for a plan.

    Uses `tokenizer.json` (or that file itself), otherwise builds Qwen2's tokenizer from
    `vocab.json`, `merges.txt` and, if present, `tokenizer_config.json`.

    Args:
        vocab_size: number of token ids of the model.

    Raises:
        DisaError: the files are missing or damaged, or belong to another model.
    """
    folder = Path(folder)
    file = folder / MEMBER if folder.is_dir() else folder
    if file.is_file():
        data = read_text(file, MAX_FILE_BYTES).encode()
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        data = build_tokenizer(folder)
    else:
        raise DisaError(
            f"{folder}: there is neither {MEMBER} nor vocab.json with merges.txt: use the folder "
            "of the language model's tokenizer"
        )
    try:
        check_tokenizer(data)
    except DamagedFile as error:
        raise DamagedFile(f"{file}: it is not a tokenizer that can be used: {error}") from error
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise import_failed(error, "tokenizers", "text") from error
    try:
        tokenizer = Tokenizer.from_buffer(data)
        known = tokenizer.get_vocab(with_added_tokens=True)
        whole = [t for t in CHAT_TOKENS if tokenizer.encode(t).ids == [known.get(t)]]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library is not an Exception
        raise DisaError(f"{file}: it is not a tokenizer of the tokenizers library") from error
    if not known or max(known.values()) >= vocab_size:
        raise DisaError(
            f"{folder}: its tokens have ids up to {max(known.values(), default=-1)}, but the model "
            f"has {vocab_size} ids: it is the tokenizer of another model"
        )
    if absent := [token for token in CHAT_TOKENS if token not in whole]:
        raise DisaError(
            f"{folder}: it does not read {' and '.join(absent)} as one token, so prompts would not "
            "be understood: use the tokenizer of the model's own language model, Qwen2.5"
        )
    return data


def build_tokenizer(folder: Path) -> bytes:
    """`vocab.json`, `merges.txt` and, if present, `tokenizer_config.json` as one JSON document.

    Without `tokenizer_config.json` the three special tokens follow the vocabulary, as in Qwen2.

    Raises:
        DisaError: a file is damaged, or the special tokens do not follow the vocabulary.
    """
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
        from tokenizers.models import BPE
    except ImportError as error:
        raise import_failed(error, "tokenizers", "text") from error
    vocabulary, merges = _vocabulary(folder), _merges(folder)
    for one, other in merges:
        if not {one, other, one + other} <= vocabulary.keys():
            raise DisaError(
                f"{folder}: vocab.json and merges.txt do not match: a merge has tokens that are "
                "not in the vocabulary"
            )
    try:
        check_merges(vocabulary, merges)
    except DamagedFile as error:
        raise DamagedFile(f"{folder}: vocab.json and merges.txt do not match: {error}") from error
    try:
        tokenizer = Tokenizer(BPE(vocabulary, merges))
    except Exception as error:  # the library has no more specific exception
        raise DisaError(
            f"{folder}: vocab.json and merges.txt do not match ({first_line(error)})"
        ) from error
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for index, (token, stated) in enumerate(_special_tokens(folder), len(vocabulary)):
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        found = tokenizer.token_to_id(token)
        # The library numbers them one after another, whatever the configuration says.
        if found not in (index, vocabulary.get(token)) or stated not in (None, found):
            raise DisaError(
                f"{folder}: the special token {token[:80]!r} does not follow the vocabulary with "
                f"the id that tokenizer_config.json gives it: use a folder with {MEMBER}"
            )
    return str(tokenizer.to_str()).encode()


def _vocabulary(folder: Path) -> dict[str, int]:
    found = _json(folder / "vocab.json")
    if not all(type(index) is int and 0 <= index <= LARGEST for index in found.values()):
        raise DisaError(f"{folder / 'vocab.json'}: it must have a number for each token")
    return found


def _merges(folder: Path) -> list[tuple[str, str]]:
    lines = read_text(folder / "merges.txt", MAX_FILE_BYTES).split("\n")
    if lines and lines[0].startswith("#version"):
        del lines[0]
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip("\r")]
    if any(len(merge) != 2 for merge in merges):
        raise DisaError(f"{folder / 'merges.txt'}: every line must have two tokens")
    return [(merge[0], merge[1]) for merge in merges]


def _special_tokens(folder: Path) -> list[tuple[str, int | None]]:
    """The special tokens and their ids, in the order of these; None for an id that is not given."""
    path, usual = folder / "tokenizer_config.json", [(token, None) for token in SPECIAL_TOKENS]
    if not path.is_file():
        return list(usual)
    added = _json(path).get("added_tokens_decoder", {})
    try:
        tokens = [(added[index]["content"], int(index)) for index in sorted(added, key=int)]
    except (TypeError, ValueError, LookupError) as error:
        raise DisaError(f"{path}: its added_tokens_decoder is not a table of tokens") from error
    if not all(isinstance(token, str) and token for token, _ in tokens):
        raise DisaError(f"{path}: its added_tokens_decoder has a token that is not text")
    return list(tokens or usual)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, MAX_FILE_BYTES))
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{path}: it is not valid JSON") from error
    if not isinstance(found, dict):
        raise DisaError(f"{path}: it must be a JSON object")
    return found
