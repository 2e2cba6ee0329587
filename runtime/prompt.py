"""Text prompts: files of prompts, the chat template, token ids, and rows that share a prompt."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DisaError, MissingDependency
from ..files import read_text

TOKENIZER_MEMBER = "tokenizer.json"
"""The plan's member that holds the tokenizer."""

MAX_PROMPT_TOKENS = 2048
MAX_FILE_BYTES = 64 << 20

TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
CONDITIONAL = "Generate an image: {}"
UNCONDITIONAL = "Generate an image."

Ints = npt.NDArray[np.int64]


def prompt_text(prompt: str | None) -> str:
    """What the language model reads for a prompt, or for none (the unconditional half)."""
    request = UNCONDITIONAL if prompt is None else CONDITIONAL.replace("{}", prompt)
    return TEMPLATE.replace("{}", request)


class Tokenizer:
    """Text to token ids, from the JSON of the `tokenizers` library."""

    def __init__(self, data: bytes) -> None:
        """Raises DisaError if `data` is no tokenizer, MissingDependency without the library."""
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise MissingDependency("tokenizers", "text") from error
        try:
            self._backend = Backend.from_buffer(data)
        except Exception as error:  # the library raises nothing more precise
            raise DisaError(f"the plan's tokenizer cannot be read ({error})") from error

    def encode(self, prompt: str | None) -> list[int]:
        """Token ids of a prompt in its template; None is the unconditional one."""
        ids: list[int] = self._backend.encode(prompt_text(prompt)).ids
        if len(ids) > MAX_PROMPT_TOKENS:
            raise DisaError(
                f"a prompt has {len(ids)} tokens, and at most {MAX_PROMPT_TOKENS} fit: shorten "
                f"the one that begins {str(prompt)[:40]!r}"
            )
        return ids


@dataclass(frozen=True)
class PromptBatch:
    """The different prompts of a batch, and who has which.

    Attributes:
        input_ids: [prompts, prompt_length], padded on the right.
        length: real tokens of each prompt, [prompts].
        index: prompt of each row, [guidance, batch].
    """

    input_ids: Ints
    length: Ints
    index: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[Sequence[int]]]) -> "PromptBatch":
        """Token ids `rows[guidance][batch]`; equal ones are kept once."""
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
    def of_masked(
        cls, input_ids: Ints, attention_mask: npt.NDArray[Any], guidance: int
    ) -> "PromptBatch":
        """Padded ids and their mask, [guidance * batch, length]; padding must be on the right."""
        length = attention_mask.astype(bool).sum(1)
        if (attention_mask.astype(bool) != (np.arange(input_ids.shape[1]) < length[:, None])).any():
            raise DisaError("the prompts' padding must be on the right, behind the real tokens")
        if len(input_ids) % guidance:
            raise DisaError(
                f"{len(input_ids)} prompts cannot be halved: with guidance every conditional "
                "prompt needs an unconditional one"
            )
        rows = [ids[:count].tolist() for ids, count in zip(input_ids, length, strict=True)]
        batch = len(rows) // guidance
        return cls.of([rows[half * batch : (half + 1) * batch] for half in range(guidance)])

    def check(self, vocab_size: int) -> None:
        """Raise a DisaError if a token id is none of the model's."""
        if self.input_ids.min() < 0 or self.input_ids.max() >= vocab_size:
            raise DisaError(
                f"a prompt has token ids from {self.input_ids.min()} to {self.input_ids.max()}, "
                f"and the model knows 0 to {vocab_size - 1}: the tokenizer is of another model"
            )


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str], guidance: bool) -> PromptBatch:
    """The batch of these prompts, with an unconditional half for guidance."""
    rows = [[tokenizer.encode(prompt) for prompt in prompts]]
    if guidance:
        rows.append([tokenizer.encode(None)] * len(prompts))
    return PromptBatch.of(rows)


def read_prompts(path: Path | str) -> list[str]:
    """The prompts of a file.

    A `.json` file holds a list, a `.jsonl` file a line for each prompt: text, or an object
    with the text under `prompt`. Any other file holds one prompt a line. Blank lines do not
    count.

    Raises:
        DisaError: unreadable, not UTF-8, of another shape, or without prompts.
    """
    path = Path(path)
    text = read_text(path, MAX_FILE_BYTES)
    try:
        match path.suffix.lower():
            case ".json":
                items = json.loads(text)
            case ".jsonl":
                items = [json.loads(line) for line in text.splitlines() if line.strip()]
            case _:
                items = [line.strip() for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{path}: it is not valid JSON ({error}): mend the prompts") from error
    if not isinstance(items, list):
        raise DisaError(f"{path}: it must hold a JSON list of prompts")
    prompts = []
    for number, item in enumerate(items, 1):
        prompt = item.get("prompt") if isinstance(item, dict) else item
        if not isinstance(prompt, str) or not prompt.strip():
            raise DisaError(
                f"{path}: prompt {number} is not text: give strings, or objects with a `prompt`"
            )
        prompts.append(prompt)
    if not prompts:
        raise DisaError(f"{path}: there are no prompts in it")
    return prompts
