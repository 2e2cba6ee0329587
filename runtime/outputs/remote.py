"""Files at a URL, through fsspec."""

import contextlib
import errno
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from ...errors import DisaError, MissingDependency
from .store import PARTIAL, Wanted, every

_WHOLE_UPLOADS = frozenset(
    {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "memory"}
)
"""Object stores, in which an upload becomes visible completely or not at all."""
_REPLACING = frozenset({"sftp", "ssh"})
"""Folders, in which a file that is renamed replaces another one in one step."""


class RemoteStore:
    """A folder supported by fsspec, such as s3://bucket/folder; implements `Store`.

    Files are written to a temporary local file first, because an upload that fails must not become
    visible.

    Raises:
        DisaError: fsspec does not support the protocol, or its package is not installed.
    """

    appends = False

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingDependency("fsspec", "s3") from error
        self._url = url.rstrip("/")
        protocol = url.partition("://")[0]
        self._whole, self._replaces = protocol in _WHOLE_UPLOADS, protocol in _REPLACING
        try:
            # A listing must include what other machines have written since the last one.
            self.fs, root = fsspec.core.url_to_fs(
                self._url, use_listings_cache=False, skip_instance_cache=True
            )
        except ImportError as error:
            advice = (
                "run `pip install 'disa[s3]'`"
                if protocol in ("s3", "s3a")
                else "install that package"
            )
            raise DisaError(
                f"{url} needs a package that is not installed ({error}): {advice}"
            ) from error
        except (ValueError, TypeError) as error:
            raise DisaError(
                f"{url} is not a URL that fsspec supports ({error}): give a folder, or a URL such "
                "as s3://bucket/folder"
            ) from error
        self._root = str(root).rstrip("/")

    def __str__(self) -> str:
        return self._url

    def absolute(self) -> str:
        return self._url

    def path(self, name: str) -> str:
        """The file system's name of a file."""
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def write(self, name: str) -> Iterator[BinaryIO]:
        target = self.path(name)
        uploading = False
        try:
            with tempfile.NamedTemporaryFile(prefix="disa-") as file:
                yield cast(BinaryIO, file)
                file.flush()
                uploading = True
                with self.errors(name):
                    if self._whole:
                        self.fs.put_file(file.name, target)
                        return
                    partial = self.path(f"{PARTIAL}/{uuid.uuid4().hex}")
                    self.fs.makedirs(self.path(PARTIAL), exist_ok=True)
                    self.fs.put_file(file.name, partial)
                    self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                    # Renaming to a name that exists is an error on Windows shares; on HDFS, it does
                    # nothing and is not even an error.
                    if not self._replaces and self.fs.exists(target):
                        self.fs.rm_file(target)
                    self.fs.mv(partial, target)
        except OSError as error:
            if uploading or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            told = f"{error.strerror} (files are prepared there; TMPDIR chooses another folder)"
            raise OSError(error.errno, told, tempfile.gettempdir()) from error

    def read(self, name: str) -> BinaryIO:
        with self.errors(name):
            return cast(BinaryIO, self.fs.open(self.path(name), "rb"))

    def names(self, folder: str = "", within: Wanted = every) -> Iterator[str]:
        # One request lists a thousand files of an object store in any folders, and each folder
        # would be a request of its own.
        start = len(self._root) + 1
        with self.errors(folder):
            found = self.fs.find(self.path(folder))
        for path in found:
            name = path[start:]
            if name and not name.startswith(f"{PARTIAL}/") and _is_within(name, folder, within):
                yield name

    def top_names(self, folder: str = "") -> Iterator[str]:
        prefix = f"{folder}/" if folder else ""
        with self.errors(folder), contextlib.suppress(FileNotFoundError):
            for entry in self.fs.ls(self.path(folder), detail=True):
                if entry["type"] == "file":
                    yield prefix + entry["name"].rpartition("/")[2]

    def exists(self, name: str) -> bool:
        with self.errors(name):
            return bool(self.fs.exists(self.path(name)))

    def remove(self, name: str) -> None:
        with self.errors(name), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(name))

    def append(self, name: str, data: bytes) -> None:
        raise OSError(errno.ENOTSUP, "files cannot grow there", self.path(name))

    def clean(self) -> None:
        with self.errors(PARTIAL), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self.path(PARTIAL), recursive=True)

    @contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Convert the exceptions of a file system's library to OSError."""
        try:
            yield
        except (OSError, DisaError):
            raise
        except Exception as error:  # each library has its own exceptions
            told = f"{type(error).__name__}: {error}"
            raise OSError(errno.EIO, told, f"{self._url}/{name}") from error


def _is_within(name: str, folder: str, within: Wanted) -> bool:
    """Whether all sub-folders on the way from a folder to a file are wanted."""
    ends = (place for place, letter in enumerate(name) if letter == "/" and place > len(folder))
    return all(within(name[:end]) for end in ends)


def modified(store: RemoteStore, name: str) -> Any:
    """When a file was last written, as a datetime with a time zone."""
    with store.errors(name):
        return store.fs.modified(store.path(name))
