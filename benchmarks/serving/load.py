"""Starts a server, sends requests at random times, and measures their latency."""

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import numpy as np

from disa.errors import DisaError

ROUTE = "/v1/images/generations"
PATIENCE = 3600.0
START_SECONDS = 600
TARGET = 3
"""Target of the latency, relative to that of an idle server."""


@dataclass(frozen=True)
class Arrival:
    """A request to send.

    Attributes:
        at: seconds after the start of the run.
        kind: name of the kind of request.
        body: body of the request.
    """

    at: float
    kind: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Served:
    """The result of a request.

    Attributes:
        kind: name of the kind of request.
        seconds: from sending the request to the image; None if there was none.
        first_partial: seconds from sending the request to the first preview; None if none.
        ended: seconds after the start of the run.
    """

    kind: str
    seconds: float | None
    first_partial: float | None
    ended: float


@contextmanager
def server_process(
    plan: Path, options: Sequence[str]
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server, and kill it at the end of the block.

    Yields:
        Its URL, when it is ready, and its process.

    Raises:
        DisaError: it does not start or does not become ready.
    """
    code = "from disa.commands.serve import main; main()"
    command = [sys.executable, "-c", code, str(plan), "--port", "0", *options]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise DisaError(f"the server did not start: {last_line(log)}")
            url, end = line.split()[1].rstrip("/"), time.monotonic() + START_SECONDS
            while not _ready(url):
                if process.poll() is not None:
                    raise DisaError(f"the server ended before it was ready: {last_line(log)}")
                if time.monotonic() > end:
                    raise DisaError(f"the server is not ready after {START_SECONDS} seconds")
                time.sleep(0.2)
            yield url, process
        finally:
            process.kill()


def last_line(log: IO[str]) -> str:
    """The last line that a server wrote, which says why it ended."""
    log.seek(0)
    lines = log.read().splitlines()
    return lines[-1] if lines else "it did not say why"


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def poisson(
    rate: float, seconds: float, mix: Mapping[str, float], seed: int
) -> list[tuple[float, str]]:
    """Times and kinds of requests of a Poisson process.

    Args:
        rate: mean requests per second.
        seconds: length of the run.
        mix: share of each kind.
    """
    random = np.random.default_rng(seed)
    kinds, shares = list(mix), np.array(list(mix.values()))
    moments, now = [], 0.0
    while (now := now + random.exponential(1 / rate)) < seconds:
        moments.append((now, kinds[random.choice(len(kinds), p=shares / shares.sum())]))
    return moments


async def send_all(url: str, arrivals: Sequence[Arrival]) -> list[Served]:
    """Send each request at its time, whether or not the server keeps up."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        begin = time.perf_counter()

        async def at_its_time(arrival: Arrival) -> Served:
            await asyncio.sleep(arrival.at - (time.perf_counter() - begin))
            return await send(client, arrival, begin)

        return await asyncio.gather(*map(at_its_time, arrivals))


async def send(client: httpx.AsyncClient, arrival: Arrival, begin: float) -> Served:
    """Send one request and read its events; `begin` is the start of the run."""
    sent, first, done = time.perf_counter(), None, None
    async with client.stream("POST", ROUTE, json=arrival.body) as answer:
        if answer.status_code == 200:
            async for line in answer.aiter_lines():
                if line == "event: image_generation.partial_image" and first is None:
                    first = time.perf_counter() - sent
                elif line == "event: image_generation.completed":
                    done = time.perf_counter() - sent
    return Served(arrival.kind, done, first, time.perf_counter() - begin)


async def closed_loop(url: str, clients: int, bodies: Sequence[dict[str, Any]]) -> float:
    """Measure images per second with `clients` requests in the server at all times.

    Args:
        bodies: the requests, each for a stream with one image.

    Raises:
        DisaError: a request ended without its image.
    """
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        left, begin = iter(bodies), time.perf_counter()

        async def one_client() -> None:
            for body in left:
                if (await send(client, Arrival(0.0, "", body), begin)).seconds is None:
                    raise DisaError(f"{url} did not answer {body} with an image")

        await asyncio.gather(*(one_client() for _ in range(clients)))
        return len(bodies) / (time.perf_counter() - begin)


def summary(served: Sequence[Served], unloaded: Mapping[str, float]) -> dict[str, Any]:
    """Summarise the latencies of a run, as JSON.

    Args:
        unloaded: latency of each kind of request on an idle server, the unit of slowdowns.
    """
    answered = [one for one in served if one.seconds is not None]
    seconds = np.array([one.seconds for one in answered])
    slowdown = np.array([(one.seconds or 0.0) / unloaded[one.kind] for one in answered])
    first = [one.first_partial / unloaded[one.kind] for one in answered if one.first_partial]
    return {
        "requests": len(served),
        "images": len(answered),
        "p50": float(np.percentile(seconds, 50)),
        "p99": float(np.percentile(seconds, 99)),
        "slowdown_p50": float(np.percentile(slowdown, 50)),
        "slowdown_p99": float(np.percentile(slowdown, 99)),
        "within_target": float((slowdown <= TARGET).sum() / len(served)),
        "first_partial_p50": float(np.percentile(first, 50)) if first else None,
        "images_a_second": len(answered) / max(one.ended for one in served),
    }
