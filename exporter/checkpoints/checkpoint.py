"""Opens checkpoints: official training files, state dicts, safetensors."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import DisaError
from ...files import read_bytes
from . import safetensors_file
from .folder import listed_tensors, read_index, weights_in_folder
from .pickle_values import Opaque, PickleError, TensorInfo
from .pickles import read_pickle
from .torch_file import (
    MAX_PICKLE_BYTES,
    Span,
    check_members,
    is_torch_file,
    read_torch_file,
    refuse_programs,
)
from .weights import TOP, Recognise, is_tensor, select_weights

Scalar = bool | int | float | str | None
Option = Scalar | list[Scalar]

TRAINING_KEYS = {"optimizer", "opt", "epoch", "global_step", "global_steps", "scaler", "args"}
OPTION_KEYS = ("args", "hyper_parameters", "config")
ALPHA_PATTERN = "alpha_pattern"
"""PEFT's LoRA alphas of single layers. Only that there are some is kept, to refuse them."""
MAX_NAME = 512
REBUILD = re.compile(r"torch\.(_utils|_tensor)\._rebuild|torch\.distributed\.|torchao\.")
MAX_CONFIG_BYTES = 1 << 20
# Bytes that do not occur in text.
CONTROL_BYTES = {*range(32), 127} - set(b"\a\b\t\n\v\f\r\x1b")

_NOT_CHECKPOINTS = {
    b"version https://git-lfs": "a Git LFS pointer and not the file itself: run `git lfs pull`",
    b"<!doctype html": "a web page and not a checkpoint: the download failed, fetch it again",
    b"<html": "a web page and not a checkpoint: the download failed, fetch it again",
    b"\x1f\x8b": "compressed with gzip: unpack it first",
    b"\xfd7zXZ": "compressed with xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first",
    b"BZh": "compressed with bzip2: unpack it first",
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors by name, and the other contents of the file.

    Attributes:
        path: the file or folder that was opened.
        layout: where the tensors were in the file, for display.
        state: tensors on the CPU, in the file's dtypes; mapped from the file if possible.
        args: the training options that are plain values; empty if the file has none.
        files: the files that were read.
        weights: the key of the tensors; "." for the outermost dict.
        averaged: whether the key indicates an average.
        members: byte ranges with checksums of those files that are zip archives.
    """

    path: Path
    layout: str
    state: dict[str, Tensor]
    args: dict[str, Option] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    weights: str = TOP
    averaged: bool = False
    members: Mapping[Path, tuple[Span, ...]] = field(default_factory=dict)

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file, or of all its files one after another.

        Every byte is read, and compared with the checksums in a zip archive.

        Raises:
            DisaError: a checksum does not match.
        """
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for path in self.files:
            check_members(path, self.members.get(path, ()), digest.update)
        return digest.hexdigest()


def open_checkpoint(
    path: str | PathLike[str],
    weights: str | None = None,
    recognise: Recognise | None = None,
    recorded: str | None = None,
) -> Checkpoint:
    """Open a checkpoint without executing anything it contains.

    Accepts what `torch.save` writes (a training checkpoint, of which the averaged weights are used,
    or a state dict), a safetensors file, an index of several such files, and a folder with them.

    Args:
        weights: the key of the weights, if the file has several sets.
        recognise: recognises the expected models by their keys. Wrapper prefixes are removed from
            names if the rest is then recognised.
        recorded: the key that was used before; without `weights` it is used again, if the file
            has it.

    Raises:
        DisaError: the file is missing, damaged, hostile, or not a checkpoint; or it has several
            sets of weights and none is selected.
    """
    path = Path(path)
    try:
        return _open(path, weights, recognise, recorded)
    except DisaError as error:
        # Names from the file may contain control characters for the terminal.
        message = "".join(c if c.isprintable() else "?" for c in str(error))
        raise DisaError(message) from error
    except OSError as error:
        raise DisaError(f"{path}: it cannot be read: {error.strerror or error}") from error


def load_config(path: str | PathLike[str]) -> dict[str, Any]:
    """Read the sizes in a JSON file for `--config`.

    Raises:
        DisaError: the file is missing, is not a JSON object, or has a number that is not a size.
    """
    path = Path(path)
    try:
        config = json.loads(read_bytes(path, MAX_CONFIG_BYTES), parse_constant=_refuse_constant)
        if not isinstance(config, dict):
            raise DisaError(
                f"{path}: it must be a JSON object such as "
                '{"encoder_num_heads": 12}, not ' + _json_name(config)
            )
        _check_numbers(config, path)
    except json.JSONDecodeError as error:
        raise DisaError(
            f"{path}: line {error.lineno} is not valid JSON ({error.msg}): fix the configuration"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DisaError(f"{path}: it is not valid JSON text: fix the configuration") from error
    return config


def _open(
    path: Path, weights: str | None, recognise: Recognise | None, recorded: str | None
) -> Checkpoint:
    if path.is_dir():
        return _open(weights_in_folder(path), weights, recognise, recorded)
    if not path.exists():
        raise DisaError(f"{path}: there is no such file")
    if not path.is_file():
        raise DisaError(f"{path}: it is not a regular file")
    index = path.name.endswith(".index.json")
    parts = [_read(part) for part in read_index(path)] if index else [_read(path)]
    listed = listed_tensors(path) if index else {}
    document = _merged(parts, listed, path)
    chosen = select_weights(document, path, weights, recognise, recorded)
    if index and chosen.mapping is not document:
        # Which file they are from is known for the outermost values only.
        raise DisaError(
            f"{path}: the tensors in its files are inside of {chosen.key[:80]}, but an index lists "
            "tensors by their names: save each file as a plain state dict"
        )
    if missing := sorted(listed.keys() - document.keys()):
        raise DisaError(
            f"{path}: {len(missing)} of its tensors are missing in its files "
            f"(first {missing[0][:80]}): fetch all files again"
        )
    _refuse_unreadable(chosen.mapping, path)
    if not chosen.tensors:
        keys = ", ".join(str(key)[:40] for key in list(chosen.mapping)[:5]) or "nothing"
        raise DisaError(f"{path}: it has no tensors, only {keys}: use a file of model weights")
    owners = {id(value): part for part in parts for value in part.document.values()}
    state = {
        name: _plain(name, owners.get(id(value), parts[0]).tensor(value, name), path)
        for name, value in chosen.tensors.items()
        if _checked_name(name, path)
    }
    layout = f"{parts[0].layout}, {len(parts)} files" if index else parts[0].layout
    if TRAINING_KEYS & document.keys():
        layout = "training checkpoint"
    return Checkpoint(
        path,
        layout if chosen.key == TOP else f"{layout}, {chosen.key}",
        state,
        _options(document),
        (path, *(part.path for part in parts)) if index else (path,),
        chosen.key,
        chosen.averaged,
        {part.path: part.members for part in parts},
    )


@dataclass(frozen=True)
class _Part:
    """One file: its content, and a function that converts a tensor in it to a PyTorch tensor."""

    path: Path
    layout: str
    document: Mapping[Any, Any]
    tensor: Callable[[Any, str], Tensor]
    members: tuple[Span, ...] = ()


def _merged(parts: Sequence[_Part], listed: Mapping[str, str], path: Path) -> dict[Any, Any]:
    """The values of all files.

    Args:
        listed: the name of the file of each tensor that an index lists.

    Raises:
        DisaError: a tensor is in several files, and no index lists one of them.
    """
    document: dict[Any, Any] = {}
    for part in parts:
        for key, value in part.document.items():
            # A file may have a stale copy of a tensor for which the index lists another file.
            if listed.get(key, part.path.name) != part.path.name:
                continue
            if key in document and is_tensor(value):
                raise DisaError(
                    f"{path}: {str(key)[:80]} is in several files, and the index does not list the "
                    "file to read it from: add it to the index"
                )
            document[key] = value
    return document


def _read(path: Path) -> _Part:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not size:
        raise DisaError(f"{path}: the file is empty: fetch it again")
    if path.suffix == ".safetensors" or safetensors_file.looks_like_safetensors(head, size):
        tensors = safetensors_file.read_safetensors(path)
        return _Part(path, "safetensors", tensors, lambda value, _name: value)
    if not is_torch_file(head):
        raise _not_a_checkpoint(path, head)
    opened = read_torch_file(path)
    document = opened.document
    if not isinstance(document, Mapping):
        kind = "a single tensor" if isinstance(document, TensorInfo) else _kind(document)
        raise DisaError(
            f"{path}: it has {kind} instead of a dict of named tensors: save the weights "
            "with torch.save(model.state_dict())"
        )
    return _Part(path, "state dict", document, opened.tensor, opened.members)


def _kind(value: Any) -> str:
    if isinstance(value, Opaque):
        return f"an object of the class {str(value)[:120]}"
    return f"a {type(value).__name__}"


def _not_a_checkpoint(path: Path, head: bytes) -> DisaError:
    """An error that says what the file is instead, judged by its first bytes."""
    start = head.lstrip(b"\xef\xbb\xbf\t\r\n ").lower()
    for magic, answer in _NOT_CHECKPOINTS.items():
        if head.startswith(magic) or start.startswith(magic):
            return DisaError(f"{path}: it is {answer}")
    if tarfile.is_tarfile(path):
        return DisaError(f"{path}: it is a tar archive: unpack it and use the checkpoint in it")
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    try:
        found = read_pickle(stream)
    except PickleError:
        kind = "not a checkpoint" if CONTROL_BYTES & set(head) else "a text file, not a checkpoint"
        return DisaError(f"{path}: it is {kind}: use a file of torch.save or safetensors")
    try:
        refuse_programs(path, found)
    except DisaError as refusal:
        return refusal
    return DisaError(
        f"{path}: it is a plain pickle, written without PyTorch: save the weights with torch.save"
    )


def _refuse_unreadable(mapping: Mapping[Any, Any], path: Path) -> None:
    """Check for tensors that cannot be read as plain numbers, which must not be skipped silently.

    Raises:
        DisaError: there is one.
    """
    for key, value in mapping.items():
        if isinstance(value, Opaque) and REBUILD.match(str(value)):
            quantised = "qtensor" in str(value)
            kind = "quantised tensors" if quantised else "a tensor that is not plain numbers"
            raise DisaError(
                f"{path}: it has {kind} ({str(key)[:80]}, made by {str(value)[:80]}): "
                "export the float weights"
            )


def _checked_name(name: Any, path: Path) -> str:
    if not isinstance(name, str):
        raise DisaError(f"{path}: the name of a tensor is {str(name)[:80]}, which is not text")
    if len(name) > MAX_NAME or not name.isprintable():
        raise DisaError(
            f"{path}: the name of a tensor is {name[:80]!r}, which is too long or not printable"
        )
    return name or "''"


def _plain(key: str, tensor: Tensor, path: Path) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        raise DisaError(f"{path}: the tensor {key} is sparse, quantised or without data")
    # A repeated row takes no space in a file, but any amount of memory.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise DisaError(
            f"{path}: the tensor {key} claims {tensor.numel()} elements but the file has fewer: "
            "it is damaged or hostile"
        )
    misaligned = tensor.data_ptr() % tensor.element_size()
    return tensor.clone() if misaligned else tensor


def _options(document: Mapping[Any, Any]) -> dict[str, Option]:
    """The training options that are plain values."""
    options: dict[str, Option] = {}
    for place in reversed(OPTION_KEYS):
        found = document.get(place)
        found = _without_container(found)
        if isinstance(found, Mapping):
            plain = {key: _without_node(value) for key, value in found.items()}
            options |= {k: v for k, v in plain.items() if isinstance(k, str) and _is_plain(v)}
            if _without_container(plain.get(ALPHA_PATTERN)):
                options[ALPHA_PATTERN] = True
    return options


def _without_container(value: Any) -> Any:
    """Unwrap OmegaConf's dictionaries, and namespaces."""
    return value.state.get("_content", value.state) if isinstance(value, Opaque) else value


def _without_node(value: Any) -> Any:
    """Unwrap OmegaConf's value nodes."""
    return value.state["_val"] if isinstance(value, Opaque) and "_val" in value.state else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        # A list may contain itself.
        return all(not isinstance(item, list) and _is_plain(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _check_numbers(value: Any, path: Path, name: str = "") -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_numbers(inner, path, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, path, name)
    elif isinstance(value, int | float) and value < 0:
        raise DisaError(f"{path}: {name} is {value}, but sizes cannot be negative")


def _json_name(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
