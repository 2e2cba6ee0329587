"""Reads .npz files that may be damaged or forged: sizes are checked before memory is allocated.

The format is NumPy's (numpy.lib.format): a zip file with one .npy file for each array.
"""

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import DamagedFile
from ...files import open_regular

MAX_ARRAYS = 1 << 16
MAX_ARRAY_BYTES = 128 << 20
MAX_RANK = 8
MAX_HEADER = 4096
NUMBERS = "biuf"
"""Kinds of arrays that are numbers: bool, signed, unsigned, float; see `numpy.dtype.kind`."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""The compression methods that NumPy writes."""
_SUFFIX = ".npy"
UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, SyntaxError, RecursionError, OverflowError),
    *(NotImplementedError, RuntimeError, KeyError, IndexError, zipfile.BadZipFile, zlib.error),
    tokenize.TokenError,
)
"""Exceptions of zipfile and numpy.lib.format for a damaged file."""


class NpzFile:
    """The arrays of a file, each read on request.

    Raises:
        DamagedFile: it is not an .npz file, or has an invalid member.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._archive = zipfile.ZipFile(open_regular(path))
            members = self._archive.infolist()
        except FileNotFoundError as error:
            raise DamagedFile(f"{path}: there is no such file") from error
        except UNREADABLE as error:
            raise DamagedFile(f"{path}: it is not an .npz file ({_reason(error)})") from error
        self._members = {member.filename.removesuffix(_SUFFIX): member for member in members}
        if len(self._members) != len(members) or len(members) > MAX_ARRAYS:
            raise DamagedFile(f"{path}: it has an array twice, or more than {MAX_ARRAYS} arrays")

    @property
    def names(self) -> frozenset[str]:
        """The names of the arrays."""
        return frozenset(self._members)

    def read(self, name: str, kinds: str = NUMBERS) -> npt.NDArray[Any]:
        """An array of one of these kinds, in this machine's byte order.

        Raises:
            DamagedFile: it is missing, damaged, too large, of another kind, or not finite.
        """
        if name not in self._members:
            raise DamagedFile(f"{self.path}: the array {name} is missing")
        try:
            array = self._read(self._members[name], kinds)
        except (*UNREADABLE, MemoryError) as error:
            raise DamagedFile(
                f"{self.path}: the array {name} cannot be read: {_reason(error)}"
            ) from error
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedFile(f"{self.path}: the array {name} has values that are not finite")
        return array

    def _read(self, member: zipfile.ZipInfo, kinds: str) -> npt.NDArray[Any]:
        if member.compress_type not in METHODS:
            raise ValueError("it is compressed with an unknown method")
        if member.file_size > MAX_ARRAY_BYTES + MAX_HEADER:
            raise ValueError(f"it has {member.file_size} bytes, more than {MAX_ARRAY_BYTES}")
        with self._archive.open(member) as file:
            shape, fortran, dtype = _header(file)
            size = math.prod(shape) * dtype.itemsize
            if dtype.kind not in kinds or dtype.hasobject or len(shape) > MAX_RANK:
                raise ValueError(f"it is of type {dtype} with {len(shape)} dimensions")
            if size > member.file_size:
                raise ValueError(f"it declares {size} bytes but has {member.file_size}")
            data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"its shape {shape} does not match its data")
        array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        return array.astype(dtype.newbyteorder("="), copy=False)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"its format has version {version}")
    shape, fortran, dtype = read(file, max_header_size=MAX_HEADER)
    if any(side < 0 for side in shape):
        raise ValueError("a dimension is negative")
    return shape, fortran, dtype


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
