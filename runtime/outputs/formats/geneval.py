"""The folder structure for GenEval's evaluator."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from ..selection import Selection
from ..store import Store
from .folder import FolderFormat

_IMAGE = re.compile(r"(\d{5,})/samples/(\d{5,})")
_METADATA = "{:05d}/metadata.jsonl"


class GenEvalNaming:
    """A folder for each prompt: 00007/samples/00002 is the third image of the eighth prompt.

    Args:
        prompts: number of prompts, which alternate.
    """

    def __init__(self, prompts: int) -> None:
        self._prompts = prompts

    def name(self, index: int) -> str:
        sample, prompt = divmod(index, self._prompts)
        return f"{prompt:05d}/samples/{sample:05d}"

    def earlier_name(self, index: int) -> str:
        # Version 1 did not have this structure.
        return self.name(index)

    def folders(self, indices: Sequence[int]) -> Set[str]:
        prompts = {f"{index % self._prompts:05d}" for index in indices}
        return prompts | {f"{prompt}/samples" for prompt in prompts}

    def index(self, name: str) -> int | None:
        match = _IMAGE.fullmatch(name)
        if not match:
            return None
        index = int(match[2]) * self._prompts + int(match[1])
        return index if name == self.name(index) else None


class GenEvalFormat(FolderFormat):
    """Images with metadata.jsonl beside them; implements `Format`."""

    def __init__(self, prompts: int, suffix: str) -> None:
        super().__init__(GenEvalNaming(prompts), suffix)
        self._prompts = prompts

    def owned(self, store: Store, selection: Selection) -> Iterator[str]:
        metadata = filter(store.exists, map(_METADATA.format, range(self._prompts)))
        return itertools.chain(super().owned(store, selection), metadata)


def write_metadata(store: Store, prompts: Sequence[Mapping[str, Any]]) -> None:
    """Write the evaluator's metadata of each prompt.

    Raises:
        OSError: the system cannot write it.
    """
    for number, content in enumerate(prompts):
        with store.write(_METADATA.format(number)) as file:
            file.write(json.dumps(content).encode() + b"\n")
