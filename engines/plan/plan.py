"""The plan file: graphs, weights, engines and a manifest in one memory-mapped file.

A plan is a zip file (see `archive`) whose first member is `manifest.json`. Weights are used
directly from the mapped file; nothing is ever unpacked.
"""

import contextlib
import hashlib
import mmap
import os
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO

from ...checked_json import JSONError
from ...errors import DamagedFile, DisaError
from ...files import open_regular
from .archive import ArchiveError, Entry, read_directory
from .manifest import MANIFEST, MAX_BYTES, GraphInfo, Manifest, parse_manifest
from .onnx_file import Extent
from .writer import PlanWriter

__all__ = ["Plan", "PlanWriter"]

_CHUNK = 1 << 22


class Plan:
    """An open plan. Its members are views of the mapped file, valid while the plan is open."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        entries: list[Entry],
        mapped: mmap.mmap,
        identity: tuple[int, ...],
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.size = len(mapped)
        self._identity = identity
        self._entries = {entry.name: entry for entry in entries}
        self._map = mapped

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Plan":
        """Map a plan and check its directory and manifest.

        Weights are not read: `check` does that.

        Raises:
            DisaError: the file cannot be opened, is damaged or is not a plan.
        """
        path = Path(path)
        file = _open_regular(path)
        descriptor = file.fileno()
        try:
            status = os.fstat(descriptor)
            size = status.st_size

            def read(offset: int, count: int) -> bytes:
                return _read_exactly(descriptor, offset, count)

            entries = read_directory(read, size)
            manifest = _read_manifest(read, entries)
            mapped = mmap.mmap(descriptor, size, prot=mmap.PROT_READ)
            return cls(path, manifest, entries, mapped, _identity(status))
        except (ArchiveError, JSONError) as error:
            raise DamagedFile(
                f"{path} is not a plan or is damaged: {error}; export the checkpoint again "
                "or copy the file again"
            ) from error
        except DisaError as error:
            raise DisaError(f"{path}: {error}") from error
        except (OSError, ValueError) as error:
            raise DisaError(f"{path} cannot be read: {error}") from error
        finally:
            file.close()

    def graph(self, name: str) -> GraphInfo:
        """The graph with that name.

        Raises:
            DamagedFile: the plan has no such graph.
        """
        try:
            return self.manifest.graphs[name]
        except KeyError:
            have = ", ".join(self.manifest.graphs) or "none"
            raise DamagedFile(f"{self.path} has no graph named {name}: it has {have}") from None

    def read(self, member: str) -> memoryview:
        """The bytes of a member, as a read-only view of the mapped file."""
        entry = self._entry(member)
        return memoryview(self._map)[entry.offset : entry.offset + entry.size]

    def extents(self, graph: GraphInfo) -> dict[str, Extent]:
        """The file ranges of a graph's weights, by the file names in its ONNX file."""
        return {
            PurePosixPath(member).name: Extent(self.offset(member), self._entry(member).size)
            for member in graph.data
        }

    def offset(self, member: str) -> int:
        """The offset of a member's data in the file."""
        return self._entry(member).offset

    def check_unchanged(self) -> None:
        """Check that `path` is still the opened file, for code that opens it again by name.

        Raises:
            DisaError: the file was replaced or changed.
        """
        try:
            identity = _identity(os.stat(self.path))
        except OSError:
            identity = ()
        if identity != self._identity:
            raise DisaError(f"{self.path} was replaced or changed while it was in use: try again")

    def check_not_overwritten(self) -> None:
        """Check that nobody has written into the mapped file by its name.

        A file that replaced it, or its deletion, does not change what is mapped.

        Raises:
            DisaError: the file was changed in place.
        """
        try:
            identity = _identity(os.stat(self.path))
        except OSError:
            return
        if identity[:2] == self._identity[:2] and identity != self._identity:
            raise DisaError(
                f"{self.path.name} was overwritten while it was in use: start again, and replace a "
                "plan by renaming a file"
            )

    def check(self, progress: Callable[[int], object] = lambda count: None) -> None:
        """Compare every member with its checksum.

        Args:
            progress: called with the number of bytes read since the last call.

        Raises:
            DisaError: a member differs; the message names the first one.
        """
        for name in self.manifest.members:
            self.check_member(name, progress)

    def check_member(
        self, name: str, progress: Callable[[int], object] = lambda count: None
    ) -> None:
        """Compare a member with its checksum.

        Raises:
            DisaError: it differs.
        """
        digest = hashlib.sha256()
        with self.read(name) as view:
            for start in range(0, len(view), _CHUNK):
                with view[start : start + _CHUNK] as chunk:
                    digest.update(chunk)
                    progress(len(chunk))
        if digest.hexdigest() != self.manifest.members[name].sha256:
            raise DamagedFile(
                f"{self.path}: the checksum of {name} does not match: the file was damaged or "
                "changed; copy it again or export the checkpoint again"
            )

    def close(self) -> None:
        """Unmap the file after its last view is deleted."""
        self._entries = {}
        # While views are in use the mapping stays; it is removed with the last view.
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> "Plan":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _entry(self, member: str) -> Entry:
        try:
            return self._entries[member]
        except KeyError:
            raise DisaError(f"{self.path} has no member {member}, or was closed") from None


def _open_regular(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise DisaError(f"there is no plan at {path}: make one with disa-export") from None
    except IsADirectoryError:
        raise DisaError(f"{path} is a folder: give the plan file in it") from None
    except OSError as error:
        raise DisaError(f"{path} cannot be opened: {error.strerror or error}") from error


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _read_exactly(descriptor: int, offset: int, count: int) -> bytes:
    data = os.pread(descriptor, count, offset)
    if len(data) != count:
        raise ArchiveError("it is cut short")
    return data


def _read_manifest(read: Callable[[int, int], bytes], entries: list[Entry]) -> Manifest:
    first = entries[0]
    if first.name != MANIFEST:
        raise ArchiveError(f"its first member is not {MANIFEST}")
    if first.size > MAX_BYTES:
        raise ArchiveError(f"its manifest claims {first.size} bytes")
    data = read(first.offset, first.size)
    if zlib.crc32(data) != first.crc:
        raise ArchiveError("its manifest is damaged")
    manifest = parse_manifest(data)
    sizes = {entry.name: entry.size for entry in entries[1:]}
    if sizes.keys() != manifest.members.keys():
        names = sorted(sizes.keys() ^ manifest.members.keys())
        raise ArchiveError(f"its manifest and its directory differ in {names[0]}")
    for name, member in manifest.members.items():
        if member.size != sizes[name]:
            raise ArchiveError(f"its member {name} does not have the size in its manifest")
    return manifest
