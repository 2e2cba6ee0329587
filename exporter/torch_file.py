"""Files written by `torch.save`, opened without running what they contain.

Two lines of defence. First the file is surveyed: the zip directory, the names its pickle
asks for and the sizes it declares must be those of a checkpoint of plain weights. Then
PyTorch's weights-only loader opens it, with tensors mapped from the file where it can.
"""

import argparse
import io
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..errors import DisaError
from .pickles import Global, PickleError, Storage, Survey, survey

ZIP_MAGIC = b"PK\x03\x04"
# Files older than PyTorch 1.6 begin with a pickle of this number.
LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
LEGACY_MAGIC_END = 32
LEGACY_PICKLES = 5
# A thousand tensors take some 150 kB; what is much larger is something else.
MAX_PICKLE_BYTES = 16 << 20
TORCH_PROTOCOL = 2

ELEMENT_BYTES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "UntypedStorage": 1,
}

_STORAGE = re.compile(r"torch(\.cuda|\.storage)?\.(?P<kind>\w+Storage)")
_DTYPE = re.compile(r"torch\.(float|bfloat|int|uint|complex|bool)\w*")
_CODE_MODULES = {
    "__builtin__", "asyncio", "bdb", "builtins", "code", "commands", "copyreg", "ctypes", "dill",
    "functools", "importlib", "io", "marshal", "multiprocessing", "nt", "operator", "os", "pdb",
    "pickle", "platform", "posix", "pty", "runpy", "shutil", "socket", "subprocess", "sys",
    "threading", "timeit", "types", "urllib", "webbrowser",
}  # fmt: skip

_ZIP_FAILURES = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OverflowError,
    KeyError, IndexError, NotImplementedError, RuntimeError, OSError,
)  # fmt: skip
# What the weights-only loader was seen to raise on damaged and hostile files.
_LOAD_FAILURES = (
    RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError,
    AttributeError, AssertionError, OverflowError, MemoryError, struct.error, ImportError,
)  # fmt: skip


class _NumpyType:
    """Stands in for `numpy.dtype` while a numpy scalar is read."""

    def __init__(self, code: str, _align: bool = False, _copy: bool = True) -> None:
        if not re.fullmatch(r"[biuf][1248]", code):
            raise ValueError(f"numpy type {code!r}")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _numpy_scalar(dtype: _NumpyType, data: bytes) -> int | float | bool:
    code, size = dtype.code[0], int(dtype.code[1])
    if code == "f":
        value: float = struct.unpack(dtype.order + {2: "e", 4: "f", 8: "d"}[size], data)[0]
        return value
    number = int.from_bytes(data, "big" if dtype.order == ">" else "little", signed=code == "i")
    return bool(number) if code == "b" else number


def _path_text(*parts: str) -> str:
    return str(PurePosixPath(*parts))


# Training options may hold paths and numpy scalars; they come back as plain text and numbers.
_STAND_INS = {
    "numpy.dtype": _NumpyType,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    **{
        f"{module}.{name}": _path_text
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
}
_ALLOWED = {
    "argparse.Namespace",
    "collections.OrderedDict",
    "collections.Counter",
    "_codecs.encode",
    "builtins.set",
    "__builtin__.set",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Parameter",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    *_STAND_INS,
}


def is_torch_file(head: bytes) -> bool:
    """Whether a file that starts with `head` may come from `torch.save`."""
    return head.startswith(ZIP_MAGIC) or LEGACY_MAGIC in head[:LEGACY_MAGIC_END]


def read_torch_file(path: Path) -> Any:
    """The object in a file of `torch.save`: dicts, lists, plain values and tensors on the CPU.

    Tensors of zip files (PyTorch 1.6 and later) are mapped, not read.

    Raises:
        DisaError: damaged, hostile, or not a checkpoint.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP_MAGIC
    if zipped:
        _check_zip(path)
    else:
        _check_legacy(path)
    stand_ins: list[Any] = [(stand_in, name) for name, stand_in in _STAND_INS.items()]
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([argparse.Namespace, *stand_ins]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _LOAD_FAILURES as error:
        raise DisaError(
            f"{path}: PyTorch cannot open it ({_reason(error)}): it is damaged, fetch it again"
        ) from error


def refuse_pickle(path: Path, found: Survey) -> None:
    """Raise a DisaError if the pickle asks for anything but plain weights and options."""
    strange = sorted(str(g) for g in found.globals if not _is_allowed(g))
    if not strange:
        return
    names = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
    if any("qtensor" in name or "torch.Q" in name for name in strange):
        raise DisaError(f"{path}: it holds quantised tensors ({names}): export the float weights")
    if any(name.split(".")[0] in _CODE_MODULES for name in strange):
        reason = "which can run programs: do not trust this file"
    else:
        reason = "which plain weights do not need: save them with torch.save(model.state_dict())"
    raise DisaError(f"{path}: refused, and nothing in it was run: it asks for {names}, {reason}")


def _is_allowed(wanted: Global) -> bool:
    name = str(wanted)
    if storage := _STORAGE.fullmatch(name):
        return storage["kind"] in ELEMENT_BYTES
    return name in _ALLOWED or _DTYPE.fullmatch(name) is not None


def _check_zip(path: Path) -> None:
    try:
        if not zipfile.is_zipfile(path):
            raise DisaError(f"{path}: it is truncated, its end is missing: fetch it again")
        with zipfile.ZipFile(path) as archive:
            records = {info.filename: info for info in archive.infolist()}
            if len(records) != len(archive.infolist()):
                raise DisaError(f"{path}: its zip directory names one member twice: it is hostile")
            pickled = _find_pickle(path, records)
            _check_stored(path, records)
            data = archive.read(pickled)
    except _ZIP_FAILURES as error:
        raise DisaError(f"{path}: it is damaged ({_reason(error)}): fetch it again") from error
    found = _survey(path, io.BytesIO(data))
    _check_protocol(path, found.protocol)
    prefix = pickled.removesuffix("data.pkl")
    for storage in found.storages:
        record = records.get(f"{prefix}data/{storage.key}")
        declared = _bytes(storage)
        if record is None or record.file_size != declared:
            kept = "none" if record is None else str(record.file_size)
            raise DisaError(
                f"{path}: tensor storage {storage.key} declares {declared} bytes and the file "
                f"has {kept}: it is damaged or hostile"
            )


def _bytes(storage: Storage) -> int:
    return storage.elements * ELEMENT_BYTES[storage.kind]


def _find_pickle(path: Path, records: dict[str, zipfile.ZipInfo]) -> str:
    if any(name.endswith("/constants.pkl") for name in records):
        raise DisaError(f"{path}: it is a TorchScript program: give the weights it was made from")
    pickles = [name for name in records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise DisaError(f"{path}: it is a zip file without the data.pkl of a checkpoint")
    return pickles[0]


def _check_stored(path: Path, records: dict[str, zipfile.ZipInfo]) -> None:
    """Compressed members could hide a bomb, and their tensors cannot be mapped."""
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


def _check_legacy(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    sizes: dict[str, int] = {}
    surveys = [_survey(path, head) for _ in range(LEGACY_PICKLES)]
    _check_protocol(path, max(found.protocol for found in surveys))
    for found in surveys:
        for storage in found.storages:
            sizes[storage.key] = max(sizes.get(storage.key, 0), _bytes(storage))
    declared = sum(sizes.values())
    if declared > size - head.tell():
        raise DisaError(
            f"{path}: its tensors declare {declared} bytes and {size - head.tell()} are there: "
            "it is truncated or hostile, fetch it again"
        )


def _survey(path: Path, stream: io.BytesIO) -> Survey:
    try:
        found = survey(stream)
    except PickleError as error:
        raise DisaError(f"{path}: its pickle {error}: fetch the file again") from error
    refuse_pickle(path, found)
    return found


def _check_protocol(path: Path, protocol: int) -> None:
    if protocol > TORCH_PROTOCOL:
        raise DisaError(
            f"{path}: it was saved with pickle protocol {protocol}, which the safe loader "
            "does not read: save it again with torch.save's own protocol"
        )


def _reason(error: Exception) -> str:
    """The first line of an error, without PyTorch's advice to load without its safeguards."""
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle makes no sense"
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line[:120].rstrip(" .:")
