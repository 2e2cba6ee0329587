"""Writes plan files, completely or not at all."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from ...checked_json import JSONError
from ...errors import DisaError
from ...files import check_room, free_bytes, no_room
from ..session import TensorSpec
from .archive import ArchiveError, ArchiveWriter, safe_name
from .engine_info import EngineInfo
from .manifest import FORMAT_VERSION, MANIFEST, GraphInfo, dump_manifest
from .traits import GraphTraits

if TYPE_CHECKING:
    from .plan import Plan

Source = bytes | memoryview | Path
_CHUNK = 1 << 22
_NO_HASH = "0" * 64


class PlanWriter:
    """Writes a plan, completely or not at all.

        with PlanWriter("mar_b.plan", {"family": "mar", ...}) as writer:
            writer.add_graph("head", onnx=Path("head.onnx"), data=[Path("head.data")], ...)

    Entering checks that the plan can be written there. Leaving writes it to a file beside its
    place and renames that; leaving by an exception writes nothing. Files are copied and hashed
    in one pass and never held in memory. `content` is the manifest without its members, graphs
    and engines, and may be changed until the end.

    This is more than `files.written_whole` does: the file beside is locked, so that a second
    writer is refused and what a killed one left is used again, and it is on the disk before it
    is renamed.
    """

    def __init__(self, path: str | os.PathLike[str], content: Mapping[str, Any] | None = None):
        self.path = Path(path)
        self.content: dict[str, Any] = dict(content or {})
        self._target = Path(os.path.realpath(self.path))
        # The name is fixed, so that the next writer reuses what a killed one has left.
        self._partial = self._target.with_name(f".{self._target.name}.partial")
        self._sources: dict[str, Source] = {}
        self._hashes: dict[str, str] = {}
        self._graphs: dict[str, GraphInfo] = {}
        self._engines: list[EngineInfo] = []
        self._file: BinaryIO | None = None
        self._size = 0

    @classmethod
    def extend(cls, plan: "Plan", path: str | os.PathLike[str] | None = None) -> "PlanWriter":
        """A writer that starts with all members of `plan`, to be written to `path` or over it.

        The plan must stay open until the writer is done.
        """
        kept = {
            key: value
            for key, value in plan.manifest.raw.items()
            if key not in ("format", "graphs", "engines", "members")
        }
        writer = cls(path or plan.path, kept)
        writer._graphs.update(plan.manifest.graphs)
        writer._engines.extend(plan.manifest.engines)
        for name, member in plan.manifest.members.items():
            writer.add(name, plan.read(name))
            writer._hashes[name] = member.sha256
        return writer

    def add(self, member: str, source: Source) -> None:
        """Add a member: bytes, or a file that must not change until the plan is written."""
        if not safe_name(member) or member == MANIFEST:
            raise DisaError(f"a plan cannot have a member named {member!r}")
        if member in self._sources:
            raise DisaError(f"the plan already has a member named {member}")
        self._sources[member] = source

    def add_graph(
        self,
        name: str,
        onnx: Source,
        data: Sequence[Path],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        traits: GraphTraits,
    ) -> None:
        """Add an ONNX graph and the files, if any, of its external data.

        Graphs may share a file.
        """
        member = f"graphs/{name}.onnx"
        members = tuple(f"graphs/{file.name}" for file in data)
        self.add(member, onnx)
        for part, file in zip(members, data, strict=True):
            if self._sources.get(part) != file:
                self.add(part, file)
        self._graphs[name] = GraphInfo(name, member, members, tuple(inputs), tuple(outputs), traits)

    def add_engine(self, engine: EngineInfo, source: Source) -> None:
        """Add a compiled engine, whose bytes become the member `engine.member`."""
        self.add(engine.member, source)
        self._engines.append(engine)

    def remove_engine(self, engine: EngineInfo) -> None:
        """Remove an engine of the plan that is extended."""
        self._engines.remove(engine)
        del self._sources[engine.member]
        self._hashes.pop(engine.member, None)

    def __enter__(self) -> "PlanWriter":
        self._file = _open_partial(self.path, self._partial)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None, "a PlanWriter is used in a with statement"
        partial = self._partial
        try:
            with self._file as file:
                if error is not None:
                    partial.unlink(missing_ok=True)
                    return
                self._write(file)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, self._target)
            _sync_folder(self._target.parent)
        except BaseException as failure:
            partial.unlink(missing_ok=True)
            if isinstance(failure, OSError):
                raise DisaError(_why_not_written(self.path, failure, self._missing())) from failure
            if isinstance(failure, ArchiveError | JSONError):
                raise DisaError(f"{self.path} cannot be written: {failure}") from failure
            raise

    def _write(self, file: BinaryIO) -> None:
        sizes = {name: _source_size(source) for name, source in self._sources.items()}
        hashes = dict.fromkeys(self._sources, _NO_HASH)
        # All checksums have the same length: the manifest has its place at the front, and the
        # real checksums are written there after every member was read, once.
        blank = self._manifest(sizes, hashes)
        self._size = len(blank) + sum(sizes.values())
        check_room(self.path, self._size)
        archive = ArchiveWriter(file)
        archive.add(MANIFEST, len(blank), [blank])
        for name, source in self._sources.items():
            digest = hashlib.sha256()
            archive.add(name, sizes[name], _hashed(source, digest.update))
            hashes[name] = digest.hexdigest()
            if self._hashes.get(name, hashes[name]) != hashes[name]:
                raise ArchiveError(f"the checksum of {name} does not match: the plan is damaged")
        archive.replace(MANIFEST, self._manifest(sizes, hashes))
        archive.finish()

    def _missing(self) -> int:
        """Bytes by which the disk is too small for the plan without the unfinished file."""
        try:
            return max(0, self._size - free_bytes(self.path))
        except OSError:
            return 0

    def _manifest(self, sizes: Mapping[str, int], hashes: Mapping[str, str]) -> bytes:
        return dump_manifest(
            {
                "format": FORMAT_VERSION,
                **self.content,
                "graphs": {name: graph.to_json() for name, graph in self._graphs.items()},
                "engines": [engine.to_json() for engine in self._engines],
                "members": {n: {"size": sizes[n], "sha256": hashes[n]} for n in self._sources},
            }
        )


def _open_partial(path: Path, partial: Path) -> BinaryIO:
    """The locked and empty file that will become the plan at `path`."""
    if os.path.isdir(path):
        raise DisaError(f"{path} is a folder: give the name of a file for the plan")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
    except (OSError, ValueError) as error:
        raise DisaError(_why_not_written(path, error)) from error
    if not _lock(file, partial):
        file.close()
        raise DisaError(f"{path} is being written by another process: wait for it")
    file.truncate(0)
    return file


def _lock(file: BinaryIO, path: Path) -> bool:
    """Lock `file`; returns whether it is locked by us and still the file at `path`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _why_not_written(path: Path, error: OSError | ValueError, missing: int = 0) -> str:
    if not isinstance(error, OSError):
        return f"{path} cannot be written: {error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return no_room(path, missing)
    reason = error.strerror or str(error)
    about = f" ({error.filename})" if error.filename else ""
    return f"{path} cannot be written: {reason}{about}"


def _source_size(source: Source) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(source)


def _hashed(source: Source, update: Callable[[memoryview], object]) -> Iterator[memoryview]:
    for chunk in _chunks(source):
        update(chunk)
        yield chunk


def _chunks(source: Source) -> Iterator[memoryview]:
    if isinstance(source, Path):
        buffer = bytearray(_CHUNK)
        with open(source, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                yield memoryview(buffer)[:count]
    else:
        view = memoryview(source)
        for start in range(0, len(view), _CHUNK):
            yield view[start : start + _CHUNK]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
