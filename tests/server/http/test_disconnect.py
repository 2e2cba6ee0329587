"""Work that is cancelled when the client disconnects."""

import asyncio

import pytest
from starlette.types import Message

from disa.server.http.disconnect import ClientDisconnected, until_disconnect


class Client:
    """Sends a part of a body, and disconnects when told to."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.parts = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive(self) -> Message:
        for part in self.parts:
            return part
        await self.gone.wait()
        return {"type": "http.disconnect"}


def test_the_result_of_the_work_is_returned() -> None:
    async def run() -> int:
        async def work() -> int:
            return 7

        return await until_disconnect(Client().receive, work())

    assert asyncio.run(run()) == 7


def test_the_work_is_cancelled_when_the_client_disconnects() -> None:
    cancelled = []

    async def run() -> None:
        client = Client()

        async def work() -> None:
            client.gone.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        await until_disconnect(client.receive, work())

    with pytest.raises(ClientDisconnected):
        asyncio.run(asyncio.wait_for(run(), 20))
    assert cancelled == [True]


def test_errors_of_the_work_are_raised() -> None:
    async def run() -> None:
        async def work() -> None:
            raise ValueError("broken")

        await until_disconnect(Client().receive, work())

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(run())
