"""Safetensors files."""

from pathlib import Path

from torch import Tensor

from ...errors import DisaError, MissingDependency


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that starts with `head` has a safetensors header."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, memory-mapped.

    Raises:
        DisaError: the header is damaged, data is missing, or PyTorch does not have a type.
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
