"""Engines that were built before, and what else is worth keeping between runs."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT = 32 << 30
"""Bytes of engines that are kept; those not used for longest go first."""


def cache_folder() -> Path:
    """`DISA_CACHE`, or the folder that the system keeps for caches."""
    chosen = os.environ.get("DISA_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "disa"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "disa"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disa"


def cache_key(parts: Mapping[str, Any]) -> str:
    """A name for everything an engine depends on."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines, each with a note of its checksum and of what the builder told.

    An entry that is damaged counts as absent. A cache that cannot be written to costs time
    and nothing else: building goes on without it.
    """

    folder: Path
    limit: int = LIMIT

    def find(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """The file of an engine and its note, or None."""
        engine, note = self._paths(key)
        try:
            content = json.loads(note.read_text())
            with engine.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if content["sha256"] != digest:
                return None
            os.utime(engine)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return engine, content["note"]

    def store(self, key: str, data: Any, note: Mapping[str, Any]) -> Path:
        """Keep an engine. Raises OSError if the folder cannot be written."""
        engine, where = self._paths(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        view = memoryview(data)
        content = {"sha256": hashlib.sha256(view).hexdigest(), "note": dict(note)}
        _replace(engine, view)
        _replace(where, json.dumps(content).encode())
        self._trim(keep=engine)
        return engine

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.engine", self.folder / f"{key}.json"

    def _trim(self, keep: Path) -> None:
        entries = []
        for path in self.folder.glob("*.engine"):
            # Another process may have made room meanwhile.
            with suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(entries, reverse=True):
            total += size
            if total > self.limit and path != keep:
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)


def _replace(path: Path, data: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def engine_cache() -> EngineCache:
    """The user's cache of engines."""
    return EngineCache(cache_folder() / "engines")


def timing_cache(flavour: str, version: str, device: str) -> Path:
    """File of kernel timings, which belong to one version and one kind of GPU."""
    return cache_folder() / "timing" / f"{flavour}-{version}-{_plain(device)}.cache"


def runtime_cache(flavour: str, version: str, device: str, engine: str) -> Path:
    """File of kernels that were finished at run time for one engine on one kind of GPU."""
    return cache_folder() / "runtime" / f"{flavour}-{version}-{_plain(device)}-{engine[:16]}.cache"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")


def save(path: Path, data: Any) -> str:
    """Write a cache file whole. Returns why it could not, or ""."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, memoryview(data))
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}"
    return ""
