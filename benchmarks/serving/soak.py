"""Hours of mixed load on a server: memory and open files must not grow, no image may be lost."""

import asyncio
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import httpx

from disa.bench.machine import own_memory
from disa.commands.command import DisaCommand
from disa.errors import DisaError

from .load import ROUTE, server_process

CLIENTS = 8
SAMPLE_SECONDS = 5.0
WARM_SHARE = 0.3
"""Share of the time in which caches fill; growth is measured after it."""
MAX_GROWTH = 0.05
OPTIONS: list[dict[str, Any]] = [
    {},
    {"guidance_scale": 1.0},
    {"steps": "20:5"},
    {"strategy": "cosine"},
    {"num_iterations": 6},
    {"strategy": "adaptive"},
]


@click.command(cls=DisaCommand)
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--minutes", default=60.0, show_default=True)
def soak(plan: Path, minutes: float) -> None:
    """Send mixed, streamed, invalid and cancelled requests; fail if anything leaks or is lost."""
    with server_process(plan, ["--max-images", "16"]) as (url, process):
        found, sizes = asyncio.run(load(url, process.pid, 60 * minutes))
        process.terminate()
        status = process.wait(120)
    click.echo(json.dumps(found))
    early, late = split(sizes, minutes)
    faults = []
    for what in ("memory", "files"):
        before, after = (max(one[what] for one in part) for part in (early, late))
        click.echo(f"{what}: at most {before} in the first part, {after} later")
        if after > before * (1 + MAX_GROWTH):
            faults.append(f"{what} grew from {before} to {after}")
    click.echo(f"exit code {status}")
    if found["lost"] or found["twice"] or status:
        faults.append(f"images were lost or answered twice, or the exit code {status} is not 0")
    if faults:
        raise DisaError("; ".join(faults))


def split(sizes: list[dict[str, float]], minutes: float) -> tuple[list[Any], list[Any]]:
    """Split the measurements into those of the warm-up and the later ones."""
    warm = WARM_SHARE * 60 * minutes
    return [s for s in sizes if s["at"] < warm], [s for s in sizes if s["at"] >= warm]


async def load(url: str, pid: int, seconds: float) -> tuple[Counter[str], list[dict[str, float]]]:
    """Send requests for some time.

    Returns:
        Counts of requests and images by outcome, and the memory and open files over time.
    """
    found: Counter[str] = Counter(lost=0, twice=0)
    sizes: list[dict[str, float]] = []
    begin = time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:

        async def one_client(number: int) -> None:
            chance = random.Random(number)
            while time.monotonic() - begin < seconds:
                found[await request(client, chance, found)] += 1

        async def watch() -> None:
            while (at := time.monotonic() - begin) < seconds:
                files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                sizes.append({"at": at, "memory": own_memory(pid) or 0, "files": files})
                await asyncio.sleep(SAMPLE_SECONDS)

        await asyncio.gather(watch(), *map(one_client, range(CLIENTS)))
        state = (await client.get("/health/ready")).json()
    if any(model["running"] or model["waiting"] for model in state["models"].values()):
        found["lost"] += 1
    return found, sizes


async def request(client: httpx.AsyncClient, chance: random.Random, found: Counter[str]) -> str:
    """Send one request of a random kind; returns its outcome and adds image counts to `found`."""
    body = {
        **chance.choice(OPTIONS),
        "prompt": str(chance.randrange(10)),
        "n": chance.randint(1, 3),
    }
    match chance.randrange(10):
        case 0:
            answer = await client.post(ROUTE, json={**body, "steps": "nonsense"})
            assert answer.status_code == 400
            return "refused"
        case 1 | 2:
            try:
                await client.post(ROUTE, json=body, timeout=chance.uniform(0.01, 2))
            except httpx.TimeoutException:
                return "disconnected"
            return "answered"
        case 3 | 4 | 5:
            await streamed(client, body, found)
            return "streamed"
    answer = await client.post(ROUTE, json=body)
    answer.raise_for_status()
    found["images"] += len(answer.json()["data"])
    found["lost"] += body["n"] - len(answer.json()["data"])
    return "answered"


async def streamed(client: httpx.AsyncClient, body: dict[str, Any], found: Counter[str]) -> None:
    """Send a request for a stream and count its images."""
    received: Counter[int] = Counter()
    streaming = {**body, "stream": True, "partial_images": 2, "progress": True}
    async with client.stream("POST", ROUTE, json=streaming) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and '"image_generation.completed"' in line[:60]:
                received[json.loads(line[6:])["image"]] += 1
    found["images"] += len(received)
    found["lost"] += body["n"] - len(received)
    found["twice"] += sum(count - 1 for count in received.values())
