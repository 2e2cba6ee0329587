"""Safetensors files, and folders where an index spreads a model over several."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DisaError, MissingDependency

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 16 << 20


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that starts with `head` has a safetensors header."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped rather than read.

    Raises:
        DisaError: broken header, truncated data, or a type PyTorch does not have.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingDependency("safetensors", "export") from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (
        SafetensorError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
    ) as error:
        raise DisaError(
            f"{path}: it is not a valid safetensors file ({str(error)[:120]}): fetch it again"
        ) from error


def read_sharded(index: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors that an index file lists, and the files they came from.

    Raises:
        DisaError: a broken index, a file outside the folder, a missing file or tensor.
    """
    weight_map = _weight_map(index)
    shards = {name: index.parent / name for name in sorted(set(weight_map.values()))}
    tensors: dict[str, Tensor] = {}
    for name, path in shards.items():
        if not path.is_file():
            raise DisaError(f"{index}: it lists {name}, which is not beside it: fetch all files")
        tensors |= read_safetensors(path)
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise DisaError(
            f"{index}: {len(missing)} of its tensors are in none of its files "
            f"(first {missing[0]}): fetch all files again"
        )
    return {name: tensors[name] for name in weight_map}, [index, *shards.values()]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        if index.stat().st_size > MAX_INDEX_BYTES:
            raise DisaError(f"{index}: it is too large for an index of tensors")
        document: Any = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{index}: it is not valid JSON: fetch it again") from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise DisaError(f"{index}: it has no weight_map, which says where each tensor is")
    for name in weight_map.values():
        if not isinstance(name, str) or not _is_plain_name(name):
            raise DisaError(
                f"{index}: it refers to {str(name)[:80]!r}, and only files beside it are opened"
            )
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name not in {"", ".", ".."} and not set(name) & set("/\\\0")
