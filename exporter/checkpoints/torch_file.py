"""Opens files of `torch.save` without executing what they contain.

The pickle in such a file is read as data (see `pickles`), the zip directory and the sizes in the
pickle must match the file, and tensors are memory-mapped from it.
"""

import errno
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...errors import DisaError
from .pickle_values import PickleError, Storage, TensorInfo
from .pickles import Pickle, read_pickle

ZIP_MAGIC = b"PK\x03\x04"
# The end record of a zip file and the longest comment behind it.
ZIP_END = 22 + 65535
# Files from before PyTorch 1.6 begin with a pickle of this number.
LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
LEGACY_MAGIC = LEGACY_MAGIC_NUMBER.to_bytes(10, "little")
LEGACY_MAGIC_END = 32
LEGACY_PICKLES = 5
# A thousand tensors take about 150 kB; a much larger pickle is something else.
MAX_PICKLE_BYTES = 16 << 20
CHUNK = 1 << 20

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}

_CODE_MODULES = {
    "__builtin__", "asyncio", "bdb", "builtins", "code", "commands", "copyreg", "ctypes", "dill",
    "cloudpickle", "functools", "importlib", "io", "marshal", "multiprocessing", "nt", "operator",
    "os", "pdb", "pickle", "pip", "platform", "posix", "pty", "runpy", "shutil", "socket",
    "subprocess", "sys", "threading", "timeit", "types", "urllib", "webbrowser",
}  # fmt: skip
# Builtin types and functions that cannot reach anything else; exceptions are allowed too.
_BUILTINS = (
    "abs", "all", "any", "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset",
    "getattr", "int", "len", "list", "long", "max", "min", "object", "range", "round", "set",
    "slice", "sorted", "str", "sum", "tuple", "unicode", "xrange",
)  # fmt: skip
# Plain objects of training code, in modules that also contain functions which run programs.
_HARMLESS = {
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
    "copyreg._reconstructor",
    "functools.partial",
    "io.BytesIO",
    "operator.itemgetter",
    "types.SimpleNamespace",
}

_EXCEPTIONS = ("Error", "Exception", "Interrupt", "StopIteration", "Warning")

_ZIP_FAILURES = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError,
    KeyError, IndexError, NotImplementedError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class Span:
    """The byte range of a member or storage in the file.

    Attributes:
        crc: CRC-32 of the bytes, or None if the file does not contain it.
    """

    name: str
    start: int
    length: int
    crc: int | None = None

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True)
class TorchFile:
    """A file of `torch.save`.

    Attributes:
        document: dicts, lists, plain values, `TensorInfo` and `Opaque` objects.
        members: the members of the zip archive, in the order of the file; empty for old files.
    """

    path: Path
    document: Any
    members: tuple[Span, ...] = ()
    _storages: Mapping[str, Span] = field(default_factory=dict, repr=False)
    _mapped: Callable[[], torch.UntypedStorage] = field(default=torch.UntypedStorage, repr=False)

    def tensor(self, info: TensorInfo, name: str) -> Tensor:
        """A tensor, memory-mapped from the file.

        Raises:
            DisaError: it exceeds its storage or has a type that PyTorch does not know.
        """
        kinds = DTYPES.get(info.storage.kind)
        dtype = getattr(torch, info.dtype, None) if info.dtype else kinds
        if not isinstance(dtype, torch.dtype):
            raise DisaError(f"{self.path}: the tensor {name} is of the unknown type {info.dtype}")
        span = self._storages[info.storage.key]
        last = info.offset + sum((n - 1) * s for n, s in zip(info.shape, info.stride, strict=True))
        # A repeated row takes no space in a file, but any amount of memory.
        needed = max(info.numel(), last + 1 if info.numel() else 0)
        if needed * dtype.itemsize > span.length:
            raise DisaError(
                f"{self.path}: the tensor {name} claims {info.numel()} elements but the file has "
                "fewer: it is damaged or hostile"
            )
        if not info.numel():
            return torch.empty(info.shape, dtype=dtype)
        storage = self._mapped()[span.start : span.end]
        if storage.data_ptr() % dtype.itemsize or span.length % dtype.itemsize:
            storage = storage[: span.length - span.length % dtype.itemsize].clone()
        tensor = torch.empty(0, dtype=dtype)
        return tensor.set_(storage, info.offset, info.shape, info.stride)


def is_torch_file(head: bytes) -> bool:
    """Whether a file that starts with `head` may come from `torch.save`."""
    return head.startswith(ZIP_MAGIC) or LEGACY_MAGIC in head[:LEGACY_MAGIC_END]


def read_torch_file(path: Path) -> TorchFile:
    """Open a file of `torch.save` and read its pickle as data.

    Raises:
        DisaError: damaged, hostile, or not a checkpoint.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP_MAGIC
    return _open_zip(path) if zipped else _open_legacy(path)


def check_members(path: Path, members: Sequence[Span], update: Callable[[bytes], object]) -> None:
    """Read a whole file once, for `update`, and compare its members with their checksums.

    Raises:
        DisaError: a checksum does not match.
    """
    with path.open("rb") as file:
        for member in members:
            if member.start < file.tell():
                continue
            _feed(file, member.start - file.tell(), update)
            found = _feed(file, member.length, update)
            if member.crc not in (None, found):
                raise DisaError(
                    f"{path}: the checksum of its member {member.name[:60]} does not match: the "
                    "file is damaged, fetch it again"
                )
        _feed(file, None, update)


def _feed(file: BinaryIO, length: int | None, update: Callable[[bytes], object]) -> int:
    """Read `length` more bytes, or to the end; returns their CRC-32."""
    crc = 0
    while chunk := file.read(CHUNK if length is None else min(CHUNK, length)):
        update(chunk)
        if length is not None:
            crc = zlib.crc32(chunk, crc)
            length -= len(chunk)
    return crc


def refuse_programs(path: Path, found: Pickle) -> None:
    """Check that the pickle refers to nothing that can run programs.

    Raises:
        DisaError: it does.
    """
    strange = sorted(str(g) for g in found.globals if _runs_programs(g.module, str(g)))
    if strange:
        names = ", ".join(name[:80] for name in strange[:3]) + (", ..." if strange[3:] else "")
        raise DisaError(
            f"{path}: refused, and nothing in it was executed: it refers to {names}, which can run "
            "programs: do not trust this file"
        )


def _runs_programs(module: str, name: str) -> bool:
    if module in ("builtins", "__builtin__", "exceptions") and name.endswith(_EXCEPTIONS):
        return False
    return module.split(".")[0] in _CODE_MODULES and name not in _HARMLESS


def _open_zip(path: Path) -> TorchFile:
    _read_end(path)
    try:
        if not zipfile.is_zipfile(path):
            raise DisaError(f"{path}: it is truncated, its end is missing: fetch it again")
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
            if len(records) != len(archive.infolist()):
                raise DisaError(f"{path}: its zip directory lists a member twice: it is hostile")
            pickled = _find_pickle(path, records)
            _check_stored(path, records)
        members = _members(path, records)
        prefix = pickled.removesuffix("data.pkl")
        by_name = {member.name: member for member in members}
        order = by_name.get(f"{prefix}byteorder")
        if order is not None and _content(path, order) != b"little":
            raise DisaError(f"{path}: it was saved on a big-endian machine: save it again")
        data = _content(path, by_name[pickled])
    except OSError as error:
        # A damaged directory leads to positions that no file has. Any other error is not the
        # file's: of the disk, or of permissions.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _damaged(path, error) from error
    except _ZIP_FAILURES as error:
        raise _damaged(path, error) from error
    found = _read(path, io.BytesIO(data))
    storages: dict[str, Span] = {}
    for storage in found.storages:
        record = by_name.get(f"{prefix}data/{storage.key}")
        declared = _bytes(path, storage)
        if record is None or record.length != declared:
            stored = "none" if record is None else str(record.length)
            raise DisaError(
                f"{path}: tensor storage {storage.key[:40]} declares {declared} bytes but the file "
                f"has {stored}: it is damaged or hostile"
            )
        storages[storage.key] = record
    return TorchFile(path, found.document, members, storages, _mapping(path))


def _read_end(path: Path) -> None:
    """Read the end of a file once, because `zipfile` reports a failing disk as no zip file.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - ZIP_END))
        file.read()


def _damaged(path: Path, error: Exception) -> DisaError:
    return DisaError(f"{path}: it is damaged ({_reason(error)}): fetch it again")


def _content(path: Path, member: Span) -> bytes:
    with path.open("rb") as file:
        file.seek(member.start)
        data = file.read(min(member.length, MAX_PICKLE_BYTES))
    if member.crc not in (None, zlib.crc32(data)):
        raise zipfile.BadZipFile(f"the checksum of {member.name[:40]} does not match")
    return data


def _mapping(path: Path) -> Callable[[], torch.UntypedStorage]:
    """Return a function that maps the file on its first call."""
    mapped: list[torch.UntypedStorage] = []

    def map_once() -> torch.UntypedStorage:
        if not mapped:
            size = path.stat().st_size
            storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
            assert isinstance(storage, torch.UntypedStorage)
            mapped.append(storage)
        return mapped[0]

    return map_once


def _members(path: Path, records: Mapping[str, zipfile.ZipInfo]) -> tuple[Span, ...]:
    size, members = path.stat().st_size, []
    with path.open("rb") as file:
        for info in sorted(records.values(), key=lambda record: record.header_offset):
            file.seek(info.header_offset)
            header = file.read(30)
            name, extra = struct.unpack("<HH", header[26:30])
            start = info.header_offset + 30 + name + extra
            if header[:4] != ZIP_MAGIC or start + info.file_size > size:
                raise zipfile.BadZipFile(f"member {info.filename[:40]} lies outside the file")
            # PyTorch writes 0 if computing checksums is turned off.
            members.append(Span(info.filename, start, info.file_size, info.CRC or None))
    return tuple(members)


def _bytes(path: Path, storage: Storage) -> int:
    if storage.kind not in DTYPES:
        raise DisaError(
            f"{path}: it has quantised tensors or tensors of an unknown kind "
            f"({storage.kind[:40]}): export the float weights"
        )
    return storage.elements * DTYPES[storage.kind].itemsize


def _find_pickle(path: Path, records: Mapping[str, zipfile.ZipInfo]) -> str:
    if any(name.endswith("/constants.pkl") for name in records):
        raise DisaError(f"{path}: it is a TorchScript program: use the weights it was made from")
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DisaError(f"{path}: it is a zip file without the data.pkl of a checkpoint")
    return pickles[0]


def _check_stored(path: Path, records: Mapping[str, zipfile.ZipInfo]) -> None:
    """Check that members are not compressed: they could be zip bombs, and cannot be mapped.

    Raises:
        DisaError: a member is compressed, or the sizes do not match the file.
    """
    for info in records.values():
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise DisaError(
                f"{path}: its member {info.filename} is compressed, which torch.save never does: "
                "load and save it with PyTorch again"
            )
    if sum(info.file_size for info in records.values()) > path.stat().st_size:
        raise DisaError(f"{path}: its members are larger than the file: it is damaged or hostile")
    for info in records.values():
        if info.filename.endswith("data.pkl") and info.file_size > MAX_PICKLE_BYTES:
            raise DisaError(
                f"{path}: its pickle has {info.file_size >> 20} MiB, more than the "
                f"{MAX_PICKLE_BYTES >> 20} MiB allowed: it is not a checkpoint of plain weights"
            )


def _open_legacy(path: Path) -> TorchFile:
    """Five pickles (magic number, version, system, document, storage keys), then the storages.

    A storage is its number of elements as int64, then those elements.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    pickles = [_read(path, head) for _ in range(LEGACY_PICKLES)]
    magic, _, system, found, keys = pickles
    if magic.document != LEGACY_MAGIC_NUMBER and LEGACY_MAGIC not in head.getvalue()[:32]:
        raise DisaError(f"{path}: it does not begin like a file of torch.save: fetch it again")
    if isinstance(system.document, dict) and system.document.get("little_endian") is False:
        raise DisaError(f"{path}: it was saved on a big-endian machine: save it again")
    declared = {storage.key: storage for storage in found.storages}
    place, storages = head.tell(), {}
    order = keys.document if isinstance(keys.document, list) else []
    named = {key for key in order if isinstance(key, str)}
    distinct = len(named) == len(order) and len(declared) == len(found.storages)
    if named != declared.keys() or not distinct:
        raise DisaError(f"{path}: its list of storages is damaged: fetch it again")
    with path.open("rb") as file:
        for key in order:
            file.seek(place)
            stored = int.from_bytes(file.read(8), "little")
            length = _bytes(path, declared[key])
            if stored != declared[key].elements or place + 8 + length > size:
                raise DisaError(
                    f"{path}: tensor storage {key[:40]} declares {length} bytes but the file has "
                    "fewer: it is truncated or hostile, fetch it again"
                )
            storages[key] = Span(key, place + 8, length)
            place += 8 + length
    return TorchFile(path, found.document, (), storages, _mapping(path))


def _read(path: Path, stream: io.BytesIO) -> Pickle:
    try:
        found = read_pickle(stream)
    except PickleError as error:
        raise DisaError(f"{path}: its pickle {error}: fetch the file again") from error
    refuse_programs(path, found)
    return found


def _reason(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"[^\x20-\x7e]", "?", line)[:120].rstrip(" .:")
