"""Images of answers with URLs."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from disa.server.images import results as module
from disa.server.images.results import MemoryResults


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test that runs on an event loop."""

    def run() -> None:
        asyncio.run(test())

    return run


@on_loop
async def test_results_expire() -> None:
    now = 0.0
    results = MemoryResults(100, 10.0, lambda: now)
    first = await results.add(b"one", "image/png")
    now = 9.0
    second = await results.add(b"two", "image/webp")
    found = await results.get(first)
    assert found is not None
    assert (found.data, found.media_type) == (b"one", "image/png")
    now = 10.0
    assert await results.get(first) is None
    assert await results.get(second) is not None
    assert (len(results), results.size) == (1, 3)


@on_loop
async def test_the_oldest_go_when_there_is_no_room() -> None:
    results = MemoryResults(10, 10.0, lambda: 0.0)
    ids = [await results.add(bytes(4), "image/png") for _ in range(4)]
    assert [await results.get(one) is not None for one in ids] == [False, False, True, True]
    assert results.size == 8


@on_loop
async def test_one_that_is_too_large_alone_is_not_kept() -> None:
    results = MemoryResults(10, 10.0, lambda: 0.0)
    assert await results.get(await results.add(bytes(11), "image/png")) is None
    assert results.size == 0


@on_loop
async def test_deleted_results_are_gone() -> None:
    results = MemoryResults(10, 10.0, lambda: 0.0)
    one = await results.add(bytes(4), "image/png")
    assert await results.delete(one)
    assert not await results.delete(one)
    assert await results.get(one) is None
    assert results.size == 0


@on_loop
async def test_ids_cannot_be_guessed() -> None:
    results = MemoryResults(10, 10.0)
    ids = {await results.add(b"", "image/png") for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) >= 36 for one in ids)


def test_old_results_go_even_if_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXPIRY_SECONDS", 0.01)

    async def wait() -> None:
        results = MemoryResults(10, 0.01)
        await results.add(bytes(4), "image/png")
        expiry = asyncio.create_task(results.expire())
        while len(results):
            await asyncio.sleep(0.01)
        expiry.cancel()

    asyncio.run(asyncio.wait_for(wait(), 10))
