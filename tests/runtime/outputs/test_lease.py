"""Leases in a store of this process's memory."""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from disa.errors import DisaError
from disa.runtime.outputs import lease
from disa.runtime.outputs.lease import Lease
from disa.runtime.outputs.lock import LOCK, MAX_HOLDER_BYTES, lock_store
from disa.runtime.outputs.remote import RemoteStore


@pytest.fixture
def store() -> Iterator[RemoteStore]:
    found = RemoteStore("memory://lease/run")
    yield found
    found.fs.store.clear()


def age(
    store: RemoteStore,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    zone: bool,
    wrong: float = 0.0,
) -> None:
    """Make the lease look as if it was last renewed so long ago.

    Args:
        wrong: seconds by which the store's clock is ahead of this machine's.
    """

    def told(store: RemoteStore, name: str) -> datetime:
        past = seconds if name == LOCK else 0.0
        moment = datetime.now(UTC) + timedelta(seconds=wrong - past)
        return moment if zone else moment.replace(tzinfo=None)

    monkeypatch.setattr(lease, "modified", told)


def test_the_second_run_is_told_who_holds_it(store: RemoteStore) -> None:
    first = lock_store(store)
    assert isinstance(first, Lease)
    with pytest.raises(DisaError) as caught:
        Lease(store)
    told = str(caught.value)
    assert told.startswith(f"memory://lease/run is being written by process {os.getpid()} on ")
    assert told.endswith(
        ": wait for it (90 s if that process is dead), or choose another folder with -o"
    )
    first.release()
    assert not store.exists(LOCK)
    Lease(store).release()


@pytest.mark.parametrize("zone", [True, False])
def test_a_lease_ends_when_it_is_not_renewed(
    store: RemoteStore, zone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Lease(store)
    age(store, monkeypatch, 80, zone)
    with pytest.raises(DisaError, match="is being written"):
        Lease(store)
    age(store, monkeypatch, 91, zone)
    monkeypatch.setattr(lease, "SETTLING_SECONDS", 0.0)
    second = Lease(store)
    first.release()  # It does not end the lease that is another's by now.
    assert store.exists(LOCK)
    second.release()
    assert not store.exists(LOCK)


@pytest.mark.parametrize("wrong", [-300, 300])
def test_the_clock_of_this_machine_does_not_count(
    store: RemoteStore, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Lease(store)
    age(store, monkeypatch, 80, True, wrong)
    with pytest.raises(DisaError, match="is being written"):
        Lease(store)
    age(store, monkeypatch, 91, True, wrong)
    monkeypatch.setattr(lease, "SETTLING_SECONDS", 0.0)
    second = Lease(store)
    assert list(store.names()) == [LOCK]
    first.release()
    second.release()


def test_a_lease_is_renewed(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.01)
    mine = Lease(store)
    content = store.fs.cat_file(store.path(LOCK))
    assert json.loads(content)["process"] == os.getpid()
    before = store.fs.modified(store.path(LOCK))
    end = time.monotonic() + 10
    while store.fs.modified(store.path(LOCK)) == before:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert store.fs.cat_file(store.path(LOCK)) == content
    mine.check()
    store.fs.pipe_file(store.path(LOCK), b"another's")
    while not mine._lost:
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(DisaError, match="was taken over by another run"):
        mine.check()
    assert store.fs.cat_file(store.path(LOCK)) == b"another's"
    mine.release()
    assert store.fs.cat_file(store.path(LOCK)) == b"another's"


def test_two_at_the_same_moment(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see no lease: who creates it second, or whose content is replaced, has none."""
    first = Lease(store)
    monkeypatch.setattr(store, "exists", lambda name: False)
    with pytest.raises(DisaError, match="is being written by process"):
        Lease(store)
    first.release()
    pipe = store.fs.pipe_file

    def overtaken(path: str, data: bytes, **options: str) -> None:
        pipe(path, b"another's")

    monkeypatch.setattr(store.fs, "pipe_file", overtaken)
    with pytest.raises(DisaError, match="is being written by another run"):
        Lease(store)


def test_of_two_that_find_an_expired_lease_one_gets_it(
    store: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Lease(store)
    age(store, monkeypatch, 91, True)
    monkeypatch.setattr(lease, "SETTLING_SECONDS", 0.2)
    remove, both = store.remove, threading.Barrier(2)

    def together(name: str) -> None:
        both.wait(10)
        remove(name)

    monkeypatch.setattr(store, "remove", together)

    def acquire() -> Lease | None:
        try:
            return Lease(store)
        except DisaError:
            return None

    with ThreadPoolExecutor(2) as threads:
        found = [each.result() for each in [threads.submit(acquire) for _ in range(2)]]
    monkeypatch.undo()
    [held] = [each for each in found if each]
    held.release()
    dead.release()


def test_a_holder_of_any_length_is_not_read_whole(store: RemoteStore) -> None:
    store.fs.pipe_file(store.path(LOCK), b"[" * (MAX_HOLDER_BYTES + 1))
    with pytest.raises(DisaError, match="is being written by another run"):
        Lease(store)
