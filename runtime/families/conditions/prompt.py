"""Text prompts: files, the chat template, token ids, and batches of prompts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ....engines.array_types import Ints
from ....errors import DamagedFile, DisaError, InvalidRequest
from ....files import read_text, text_lines
from ....optional import first_line, import_failed
from .tokenizer_check import check_tokenizer

TOKENIZER_MEMBER = "tokenizer.json"
"""The plan's member with the tokenizer."""

MAX_PROMPT_TOKENS = 2048
MAX_PROMPT_LETTERS = 1 << 16
MAX_FILE_BYTES = 64 << 20

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CONDITIONAL = "Generate an image: {}"
UNCONDITIONAL = "Generate an image."


def prompt_text(prompt: str | None) -> str:
    """The language model's input text for a prompt, or for none (the unconditional half)."""
    request = UNCONDITIONAL if prompt is None else CONDITIONAL.replace("{}", prompt)
    return TEMPLATE.replace("{}", request)


class Tokenizer:
    """Converts text to token ids, with the JSON of the `tokenizers` library."""

    def __init__(self, data: bytes | memoryview, vocab_size: int | None = None) -> None:
        """Read a tokenizer.

        Args:
            data: the content of a tokenizer.json.
            vocab_size: number of token ids of the model; None if unknown.

        Raises:
            DamagedFile: it is not a tokenizer, belongs to another model, or could use any amount
                of memory.
            MissingDependency: the library is not installed.
        """
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise import_failed(error, "tokenizers", "text") from error
        check_tokenizer(data)
        try:
            self._backend = Backend.from_buffer(bytes(data))
        except BaseException as error:  # the library has no specific exceptions, and panics
            if isinstance(error, KeyboardInterrupt | MemoryError):
                raise
            raise DamagedFile(
                f"the plan's tokenizer cannot be read ({first_line(error)}): export the "
                "checkpoint again"
            ) from error
        # Both are for training; padding could request any length.
        self._backend.no_padding()
        self._backend.no_truncation()
        most = max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if most < 0 or (vocab_size is not None and most >= vocab_size):
            raise DamagedFile(
                f"the plan's tokenizer has tokens up to {most}, but the model has {vocab_size}: "
                "export the checkpoint again with its own tokenizer"
            )

    def encode(self, prompt: str | None) -> list[int]:
        """Token ids of a prompt in its template; None is the unconditional prompt."""
        check_prompt(prompt)
        try:
            ids: list[int] = self._backend.encode(prompt_text(prompt)).ids
        except BaseException as error:  # as above
            if isinstance(error, KeyboardInterrupt | MemoryError):
                raise
            raise DamagedFile(
                f"the plan's tokenizer fails on a prompt ({first_line(error)}): export the "
                "checkpoint again"
            ) from error
        if len(ids) > MAX_PROMPT_TOKENS:
            raise DisaError(
                f"a prompt has {len(ids)} tokens, but at most {MAX_PROMPT_TOKENS} are supported: "
                f"shorten the one that begins {str(prompt)[:40]!r}"
            )
        return ids


def check_prompt(prompt: str | None) -> None:
    """Check a prompt's length and encoding.

    Raises:
        InvalidRequest: it is too long, or cannot be encoded in UTF-8.
    """
    if prompt is None:
        return
    if len(prompt) > MAX_PROMPT_LETTERS:
        raise InvalidRequest(
            f"a prompt has {len(prompt)} characters, but at most {MAX_PROMPT_LETTERS} are "
            f"supported: shorten the one that begins {prompt[:40]!r}"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the prompt that begins {prompt[:40]!r} has a lone surrogate at character "
            f"{error.start}, which is not valid text: write it in UTF-8"
        ) from None


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt, and of the unconditional prompt for guidance."""

    conditional: tuple[int, ...]
    unconditional: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: str) -> "EncodedPrompt":
        """The token ids of a prompt."""
        return cls(tuple(tokenizer.encode(prompt)), tuple(tokenizer.encode(None)))


@dataclass(frozen=True)
class PromptBatch:
    """The different prompts of a batch, and the prompt of each image.

    Attributes:
        input_ids: [prompts, prompt_length], padded on the right.
        length: number of tokens of each prompt without padding, [prompts].
        index: prompt of each row, [guidance, batch].
    """

    input_ids: Ints
    length: Ints
    index: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[Sequence[int]]]) -> "PromptBatch":
        """A batch from token ids `rows[guidance][batch]`; equal prompts are stored once."""
        different: dict[tuple[int, ...], int] = {}
        index = np.array(
            [[different.setdefault(tuple(ids), len(different)) for ids in half] for half in rows],
            np.int64,
        )
        length = np.array([len(ids) for ids in different], np.int64)
        if not length.size or not length.min():
            raise DisaError("a prompt has no tokens")
        input_ids = np.zeros((len(different), length.max()), np.int64)
        for row, ids in enumerate(different):
            input_ids[row, : len(ids)] = ids
        return cls(input_ids, length, index)

    @classmethod
    def of_prompts(cls, prompts: Sequence[EncodedPrompt], guided: bool) -> "PromptBatch":
        """The batch of these prompts, with an unconditional half for guidance."""
        rows = [[prompt.conditional for prompt in prompts]]
        if guided:
            rows.append([prompt.unconditional for prompt in prompts])
        return cls.of(rows)

    @classmethod
    def of_masked(
        cls, input_ids: Ints, attention_mask: npt.NDArray[Any], guidance: int
    ) -> "PromptBatch":
        """Padded ids and their mask, [guidance * batch, length]; padding must be on the right."""
        if input_ids.shape != attention_mask.shape or not input_ids.size:
            raise DisaError(
                f"token ids of shape {input_ids.shape} and their mask of shape "
                f"{attention_mask.shape} do not match"
            )
        length = attention_mask.astype(bool).sum(1)
        if (attention_mask.astype(bool) != (np.arange(input_ids.shape[1]) < length[:, None])).any():
            raise DisaError("the prompts' padding must be on the right, after the real tokens")
        if len(input_ids) % guidance:
            raise DisaError(
                f"{len(input_ids)} prompts cannot be halved: with guidance every conditional "
                "prompt needs an unconditional one"
            )
        rows = [ids[:count].tolist() for ids, count in zip(input_ids, length, strict=True)]
        batch = len(rows) // guidance
        return cls.of([rows[half * batch : (half + 1) * batch] for half in range(guidance)])

    def check(self, vocab_size: int) -> None:
        """Check that all token ids belong to the model.

        Raises:
            DisaError: one does not.
        """
        if self.input_ids.min() < 0 or self.input_ids.max() >= vocab_size:
            raise DisaError(
                f"a prompt has token ids from {self.input_ids.min()} to {self.input_ids.max()}, "
                f"but the model has 0 to {vocab_size - 1}: it is another model's tokenizer"
            )


def read_prompts(path: Path | str) -> list[str]:
    """Read the prompts of a file.

    A `.json` file has a list, a `.jsonl` file a line for each prompt: text, or an object with the
    text under `prompt`. Any other file has one prompt a line. Blank lines are ignored.

    Raises:
        DisaError: the file cannot be read, is not UTF-8, has another structure, or no prompts.
    """
    path = Path(path)
    text = read_text(path, MAX_FILE_BYTES)
    try:
        match path.suffix.lower():
            case ".json":
                items = json.loads(text)
            case ".jsonl":
                items = [json.loads(line) for line in text_lines(text) if line.strip()]
            case _:
                items = [line.strip() for line in text_lines(text) if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{path}: it is not valid JSON ({error}): fix the prompts") from error
    if not isinstance(items, list):
        raise DisaError(f"{path}: it must be a JSON list of prompts")
    prompts = []
    for number, item in enumerate(items, 1):
        prompt = item.get("prompt") if isinstance(item, dict) else item
        if not isinstance(prompt, str) or not prompt.strip():
            raise DisaError(
                f"{path}: prompt {number} is not text: use strings, or objects with a `prompt`"
            )
        check_prompt(prompt)
        prompts.append(prompt)
    if not prompts:
        raise DisaError(f"{path}: there are no prompts in it")
    return prompts
