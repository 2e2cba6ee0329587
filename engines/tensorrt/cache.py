"""Caches of built engines, kernel timings and kernels compiled at run time."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache_folder import cache_folder
from ...files import written_whole

LIMIT = 32 << 30
"""Largest total size of cached engines in bytes; the least recently used are deleted first."""


def cache_key(parts: Mapping[str, Any]) -> str:
    """A name derived from everything that an engine depends on."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class EngineCache:
    """A folder of engines, each with a note of its checksum and of the builder's report.

    A damaged entry counts as missing. If the cache cannot be written, building continues without
    it.
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
        """Store an engine.

        Raises:
            OSError: the folder cannot be written.
        """
        engine, where = self._paths(key)
        self.folder.mkdir(parents=True, exist_ok=True)
        view = memoryview(data)
        content = {"sha256": hashlib.sha256(view).hexdigest(), "note": dict(note)}
        _write(engine, view)
        _write(where, json.dumps(content).encode())
        self._trim(keep=engine)
        return engine

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.engine", self.folder / f"{key}.json"

    def _trim(self, keep: Path) -> None:
        entries = []
        for path in self.folder.glob("*.engine"):
            # Another process may have deleted it meanwhile.
            with suppress(FileNotFoundError):
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        total = 0
        for _, size, path in sorted(entries, reverse=True):
            total += size
            if total > self.limit and path != keep:
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)


def _write(path: Path, data: Any) -> None:
    with written_whole(path, shared=True) as file:
        file.write(data)


def engine_cache() -> EngineCache:
    """The user's cache of engines."""
    return EngineCache(cache_folder() / "engines")


def timing_cache(flavour: str, version: str, device: str) -> Path:
    """The file of kernel timings for one version and one kind of GPU."""
    return cache_folder() / "timing" / f"{flavour}-{version}-{_plain(device)}.cache"


def runtime_cache(flavour: str, version: str, device: str, engine: str) -> Path:
    """The file of kernels compiled at run time for one engine on one kind of GPU."""
    return cache_folder() / "runtime" / f"{flavour}-{version}-{_plain(device)}-{engine[:16]}.cache"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name).strip("_")


def save(path: Path, data: Any) -> str:
    """Write a cache file completely. Returns the reason if that failed, or ""."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, data)
    except OSError as error:
        return f"{path} cannot be written: {error.strerror or error}"
    return ""
