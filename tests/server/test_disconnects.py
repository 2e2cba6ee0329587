"""Hundreds of clients that disconnect at random moments."""

import asyncio
import json
import random
from collections.abc import Sequence

import httpx

from disa.server.scheduling.ticket import Ticket
from disa.server.settings import ServerSettings

from .conftest import PATIENCE, RunningServer, running_server, until
from .fake_family import FakeFamily
from .test_metrics import samples

CLIENTS = 500
TOGETHER = 100
ROUTE = "/v1/images/generations"


def test_disconnected_clients_leave_no_images_and_tasks() -> None:
    family = FakeFamily(0.002)
    settings = ServerSettings(port=0, max_images=16, max_queue=1000)
    with running_server({"fake": family}, settings) as running:
        submitted: list[Ticket] = []
        submit = running.worker.submit

        def watched(tickets: Sequence[Ticket]) -> None:
            submit(tickets)
            submitted.extend(tickets)

        running.worker.submit = watched  # type: ignore[method-assign]
        asyncio.run(disconnect_all(running))
        until(lambda: running.worker.running == 0 and not running.worker.queue.submitted())
        until(lambda: not running.server.server_state.tasks)
        with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
            answer = client.post(ROUTE, json={"prompt": "pear", "n": 10})
            assert len(answer.json()["data"]) == 10
            found = samples(client)
    ended = sum(found["disa_images_total", "fake", o] for o in ("finished", "failed", "cancelled"))
    assert found["disa_images_total", "fake", "failed"] == 0
    assert found["disa_images_total", "fake", "cancelled"] > 0
    assert ended == len(submitted), "each image ended once, many of them in the queue"


async def disconnect_all(running: RunningServer) -> None:
    """Connect and disconnect all clients, a hundred at a time."""
    host, port = running.url.removeprefix("http://").split(":")
    limit, chance = asyncio.Semaphore(TOGETHER), random.Random(0)

    async def one_client(number: int) -> None:
        async with limit:
            _, writer = await asyncio.open_connection(host, int(port))
            data = request(number % 3 == 0)
            writer.write(data[: chance.randrange(len(data))] if number % 5 == 0 else data)
            await asyncio.sleep(chance.uniform(0, 1))
            if number % 2:
                writer.transport.abort()
            else:
                writer.close()

    await asyncio.gather(*map(one_client, range(CLIENTS)))


def request(stream: bool) -> bytes:
    """A request as it is sent."""
    body = json.dumps({"prompt": "0", "n": 2, "num_iterations": 16, "stream": stream}).encode()
    head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
