"""Prevents two runs in one place without file locks: a lease that must be renewed."""

import contextlib
import json
import threading
import time
import uuid

from ...errors import DisaError
from .lock import LOCK, MAX_HOLDER_BYTES, describe_holder, holder
from .remote import RemoteStore, modified

RENEWAL_SECONDS = 20.0
LEASE_SECONDS = 90.0
SETTLING_SECONDS = 2.0
"""Two processes that find the same expired lease replace it within so many seconds."""


class Lease:
    """The exclusive right to write a run, until `release` or until it is not renewed.

    Raises:
        DisaError: another process has it; the message names the process.
        OSError: the place cannot be written.
    """

    def __init__(self, store: RemoteStore) -> None:
        self._store = store
        self._path = store.path(LOCK)
        self._token = uuid.uuid4().hex
        self._data = json.dumps(holder() | {"token": self._token}).encode()
        self._acquire()
        self._lost: DisaError | None = None
        self._released = threading.Event()
        self._renewal = threading.Thread(target=self._renew, daemon=True)
        self._renewal.start()

    def check(self) -> None:
        """Check that the lease was not lost, at the last renewal.

        Raises:
            DisaError: another process took it, because it was not renewed for so long.
        """
        if self._lost:
            raise self._lost

    def release(self) -> None:
        """End the lease."""
        self._released.set()
        self._renewal.join()
        with contextlib.suppress(OSError):
            if self._held():
                self._store.remove(LOCK)

    def _acquire(self) -> None:
        expired = self._store.exists(LOCK)
        if expired:
            if self._age() < LEASE_SECONDS:
                raise self._taken()
            self._store.remove(LOCK)
        try:
            with self._store.errors(LOCK):
                self._store.fs.pipe_file(self._path, self._data, mode="create")
        except FileExistsError as error:
            raise self._taken() from error
        if expired:
            time.sleep(SETTLING_SECONDS)
        if not self._held():
            raise self._taken()

    def _age(self) -> float:
        """Seconds since the lease was renewed, by the store's clock: this machine's may be off."""
        probe = f"{LOCK}.{self._token}"
        with self._store.errors(probe):
            self._store.fs.pipe_file(self._store.path(probe), self._data)
        try:
            age = modified(self._store, probe) - modified(self._store, LOCK)
        finally:
            self._store.remove(probe)
        return float(age.total_seconds())

    def _renew(self) -> None:
        while not self._released.wait(RENEWAL_SECONDS):
            with contextlib.suppress(OSError), self._store.errors(LOCK):
                content = self._content()
                if content == self._data:
                    self._store.fs.pipe_file(self._path, self._data)
                elif content:
                    self._lost = DisaError(
                        f"{self._store} was taken over by {describe_holder(content)}, because this "
                        f"run did not renew its lock for {LEASE_SECONDS:.0f} s: run again after it"
                    )

    def _held(self) -> bool:
        return self._content() == self._data

    def _content(self) -> bytes:
        try:
            with self._store.read(LOCK) as file:
                return file.read(MAX_HOLDER_BYTES)
        except FileNotFoundError:
            return b""

    def _taken(self) -> DisaError:
        return DisaError(
            f"{self._store} is being written by {describe_holder(self._content())}: wait for it "
            f"({LEASE_SECONDS:.0f} s if that process is dead), or choose another folder with -o"
        )
