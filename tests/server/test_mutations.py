"""Thousands of broken requests: never a failure of the server, never a hang."""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from disa.server.app import create_app
from disa.server.scheduling.worker import State

from .conftest import make_service, until
from .fake_family import FakeFamily

REQUESTS = 2000
TOGETHER = 50
SECONDS = 20.0
ROUTE = "/v1/images/generations"
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 11, 2**31, 2**63, -(2**70), 0.5, 1e308, -0.0, "", " ", "0",
    "3", "-1", "pear", "sports car", "a" * 300, "\u0000", "\ud83d\ude00", "../../etc/passwd",
    "50:5", "1000:1000", "999999x999999", "16x16", "auto", "png", "url", "linear", [], [0], [None],
    [[[]]], {}, {"a": 1}, ["x"] * 50, list(range(20)),
]  # fmt: skip
FIELDS = [
    "prompt", "model", "n", "size", "response_format", "output_format", "output_compression",
    "stream", "partial_images", "class_label", "seed", "first_image", "progress", "quality",
    "style", "moderation", "background", "user", "num_iterations", "steps", "strategy",
    "guidance_scale", "schedule", "temperature", "__proto__", "", "prompt ",
]  # fmt: skip
GOOD = {"prompt": "pear", "n": 1, "num_iterations": 1}
STATUSES = {200, 400, 404, 413, 415, 429}


def mutated(random_: random.Random) -> bytes:
    """A body that is a request, nearly one, or none."""
    body: dict[str, Any] = dict(GOOD)
    for _ in range(random_.choice((0, 1, 1, 1, 2, 3, 6))):
        body[random_.choice(FIELDS)] = random_.choice(VALUES)
    data = bytearray(json.dumps(body).encode())
    kind = random_.random()
    if kind < 0.2:
        for _ in range(random_.randint(1, 4)):
            data[random_.randrange(len(data))] = random_.randrange(256)
    elif kind < 0.3:
        del data[random_.randrange(len(data)) :]
    elif kind < 0.4:
        place = random_.randrange(len(data))
        data[place:place] = random_.choice((b"NaN", b"1e999", b"\\ud800", b'{"', b"[" * 500, b"\0"))
    return bytes(data)


def test_no_request_makes_the_server_fail() -> None:
    service = make_service({"fake": FakeFamily()})
    for worker in service.workers.values():
        worker.start()
        until(lambda worker=worker: worker.state is State.READY)
    random_ = random.Random(0)
    bodies = [mutated(random_) for _ in range(REQUESTS)]
    types = [random_.choice(["application/json"] * 9 + ["text/plain", ""]) for _ in bodies]
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=True)

    async def send_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            limit = asyncio.Semaphore(TOGETHER)
            sends = [
                limited(limit, lambda b=b, t=t: post(client, b, t))
                for b, t in zip(bodies, types, strict=True)
            ]
            return await asyncio.gather(*sends)

    answers = asyncio.run(send_all())
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code in STATUSES, (body, answer.text)
        if answer.status_code != 200:
            assert answer.json()["error"]["message"]
        elif answer.headers["content-type"] == "application/json":
            assert answer.json()["data"]
    counts = dict.fromkeys(STATUSES, 0)
    for answer in answers:
        counts[answer.status_code] += 1
    assert counts[200] > REQUESTS / 20
    assert counts[400] > REQUESTS / 3
    for worker in service.workers.values():
        assert worker.alive
        worker.abandon()
        assert worker.join(SECONDS)


async def limited(
    limit: asyncio.Semaphore, send: Callable[[], Awaitable[httpx.Response]]
) -> httpx.Response:
    async with limit:
        return await asyncio.wait_for(send(), SECONDS)


async def post(client: httpx.AsyncClient, body: bytes, kind: str) -> httpx.Response:
    return await client.post(ROUTE, content=body, headers={"content-type": kind})
