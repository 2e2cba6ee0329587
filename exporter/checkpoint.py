"""Opening a checkpoint: official training files, state dicts, safetensors."""

import hashlib
import io
import json
import tarfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DisaError
from ..files import read_bytes
from . import safetensors_file
from .pickles import PickleError, survey
from .torch_file import MAX_PICKLE_BYTES, is_torch_file, read_torch_file, refuse_pickle

Scalar = bool | int | float | str | None
Option = Scalar | list[Scalar]

# In order of preference: evaluation uses the averaged weights.
WEIGHT_KEYS = ("model_ema", "model", "state_dict")
TRAINING_KEYS = {"optimizer", "epoch", "scaler", "args"}
# Wrappers of DistributedDataParallel and torch.compile.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
MAX_CONFIG_BYTES = 1 << 20
# Bytes that no text holds.
CONTROL_BYTES = {*range(32), 127} - set(b"\a\b\t\n\v\f\r\x1b")

_NOT_CHECKPOINTS = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself: run `git lfs pull`",
    b"<!doctype html": "a web page and not a checkpoint: the download went wrong, fetch it again",
    b"<html": "a web page and not a checkpoint: the download went wrong, fetch it again",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors by name, and what else the file says.

    Attributes:
        path: what was opened.
        layout: where the tensors were found, for display.
        state: tensors on the CPU, in the file's dtypes; mapped from the file if possible.
        args: the training options that are plain values; empty if the file has none.
        files: the files that were read.
    """

    path: Path
    layout: str
    state: dict[str, Tensor]
    args: dict[str, Option] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file, or of all its files one after another."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        return digest.hexdigest()


def open_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Open a checkpoint without running anything it contains.

    Accepts what `torch.save` writes (a training checkpoint, whose `model_ema` is chosen, or
    a state dict), a safetensors file, and a folder or index of several safetensors files.

    Raises:
        DisaError: missing, damaged, hostile, or not a checkpoint.
    """
    path = Path(path)
    try:
        return _open(path)
    except OSError as error:
        raise DisaError(f"{path}: it cannot be read: {error.strerror or error}") from error


def load_config(path: str | PathLike[str]) -> dict[str, Any]:
    """The sizes in a JSON file for `--config`.

    Raises:
        DisaError: missing, not a JSON object, or a number that no size can have.
    """
    path = Path(path)
    try:
        config = json.loads(read_bytes(path, MAX_CONFIG_BYTES), parse_constant=_refuse_constant)
        if not isinstance(config, dict):
            raise DisaError(
                f"{path}: it must hold a JSON object such as "
                '{"encoder_num_heads": 12}, not ' + _json_name(config)
            )
        _check_numbers(config, path)
    except json.JSONDecodeError as error:
        raise DisaError(
            f"{path}: line {error.lineno} is not valid JSON ({error.msg}): mend the configuration"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{path}: it is not valid JSON text: mend the configuration") from error
    return config


def _open(path: Path) -> Checkpoint:
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise DisaError(f"{path}: there is no such file")
    if not path.is_file():
        raise DisaError(f"{path}: it is not a regular file")
    if path.name.endswith(".index.json"):
        return _open_sharded(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not size:
        raise DisaError(f"{path}: the file is empty: fetch it again")
    if path.suffix == ".safetensors" or safetensors_file.looks_like_safetensors(head, size):
        state = _tensors(safetensors_file.read_safetensors(path), path)
        return Checkpoint(path, "safetensors", state, files=(path,))
    if not is_torch_file(head):
        raise _not_a_checkpoint(path, head)
    document = read_torch_file(path)
    found, layout = _weights(document, path)
    return Checkpoint(path, layout, _tensors(found, path), _options(document), (path,))


def _open_folder(path: Path) -> Checkpoint:
    if (path / safetensors_file.INDEX).is_file():
        return _open_sharded(path / safetensors_file.INDEX)
    if (path / safetensors_file.SINGLE).is_file():
        return _open(path / safetensors_file.SINGLE)
    raise DisaError(
        f"{path}: it is a folder without {safetensors_file.SINGLE}: give the file in it"
    )


def _open_sharded(index: Path) -> Checkpoint:
    tensors, files = safetensors_file.read_sharded(index)
    layout = f"safetensors, {len(files) - 1} files"
    return Checkpoint(index, layout, _tensors(tensors, index), files=tuple(files))


def _not_a_checkpoint(path: Path, head: bytes) -> DisaError:
    """What the file is instead, as well as its first bytes tell."""
    start = head.lstrip(b"\xef\xbb\xbf\t\r\n ").lower()
    for magic, answer in _NOT_CHECKPOINTS.items():
        if head.startswith(magic) or start.startswith(magic):
            return DisaError(f"{path}: it is {answer}")
    if tarfile.is_tarfile(path):
        return DisaError(f"{path}: it is a tar archive: unpack it and give the checkpoint in it")
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    try:
        found = survey(stream)
    except PickleError:
        kind = "not a checkpoint" if CONTROL_BYTES & set(head) else "a text file, not a checkpoint"
        return DisaError(f"{path}: it is {kind}: give a file of torch.save or safetensors")
    try:
        refuse_pickle(path, found)
    except DisaError as refusal:
        return refusal
    return DisaError(
        f"{path}: it is a plain pickle, written without PyTorch: save the weights with torch.save"
    )


def _weights(document: Any, path: Path) -> tuple[Mapping[Any, Any], str]:
    """The mapping that holds the tensors, and its name for display."""
    if not isinstance(document, Mapping):
        kind = "a single tensor" if isinstance(document, Tensor) else f"a {type(document).__name__}"
        raise DisaError(f"{path}: it holds {kind} where a dict of named tensors belongs")
    for key in WEIGHT_KEYS:
        inner = document.get(key)
        if isinstance(inner, Mapping) and inner:
            kind = "training checkpoint" if TRAINING_KEYS & document.keys() else "state dict"
            return inner, f"{kind}, {key}"
    return document, "state dict"


def _tensors(mapping: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The usable tensors of a mapping, without wrapper prefixes."""
    state: dict[str, Tensor] = {}
    for key, value in mapping.items():
        if not isinstance(value, Tensor):
            continue
        if not isinstance(key, str):
            raise DisaError(f"{path}: the name of a tensor is {key!r}, which is not text")
        state[key] = _plain(key, value, path)
    if not state:
        keys = ", ".join(str(key)[:40] for key in list(mapping)[:5]) or "nothing"
        raise DisaError(f"{path}: it holds no tensors, only {keys}: give a file of model weights")
    while prefix := next((p for p in WRAPPER_PREFIXES if all(k.startswith(p) for k in state)), ""):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _plain(key: str, tensor: Tensor, path: Path) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        raise DisaError(f"{path}: the tensor {key} is sparse, quantised or without data")
    # A repeated row takes no room in a file and any amount in memory.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DisaError(
            f"{path}: the tensor {key} claims {tensor.numel()} elements and the file has fewer: "
            "it is damaged or hostile"
        )
    misaligned = tensor.data_ptr() % tensor.element_size()
    return tensor.clone() if misaligned else tensor


def _options(document: Any) -> dict[str, Option]:
    """The training options that are plain values."""
    args = document.get("args")
    if isinstance(args, Namespace):
        args = vars(args)
    if not isinstance(args, Mapping):
        return {}
    return {key: value for key, value in args.items() if isinstance(key, str) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) and not isinstance(item, list) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _check_numbers(value: Any, path: Path, name: str = "") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, path, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, path, name)
    elif isinstance(value, int | float) and value < 0:
        raise DisaError(f"{path}: {name} is {value}, and sizes cannot be negative")


def _json_name(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
