"""Replicas behind Ray Serve. Starting it takes seconds, so all tests share one application."""

import concurrent.futures
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import ray
from ray import serve

from disa.errors import InvalidRequest
from disa.server.ray import app
from disa.server.replicas.arguments import Arguments

from .conftest import PATIENCE, until

pytestmark = pytest.mark.ray  # Its driver leaves handlers and threads behind.

ROUTE = "/v1/images/generations"
NAME = "pixels-fp32"
SHORT = {"prompt": "bag", "num_iterations": 2, "steps": "2"}
LONG = {"prompt": "bag", "num_iterations": 16, "steps": "600:300"}


@pytest.fixture(scope="module")
def url(pixel_plan: Path) -> Iterator[str]:
    """The address of two replicas, each with a thread."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ray.init(
            "local",
            num_cpus=3,
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app(arguments(pixel_plan)), name="disa")
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


def arguments(plan: Path, **others: Any) -> Arguments:
    """As `serve run` reads them: from text."""
    given = {
        "plan": str(plan),
        "engine": "cpu",
        "threads": "1",
        "min_replicas": "2",
        "max_replicas": "2",
        "warm_up_seconds": "0",
        **others,
    }
    return Arguments.model_validate(given)


def test_fewer_replicas_at_most_than_at_least_are_refused(pixel_plan: Path) -> None:
    with pytest.raises(InvalidRequest, match="min_replicas is 2 and max_replicas 1"):
        app(arguments(pixel_plan, max_replicas="1"))


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url + ROUTE, json={**SHORT, **body}, timeout=6 * PATIENCE)


def images(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [image["b64_json"] for image in answer.json()["data"]]


def replicas(url: str) -> list[dict[str, Any]]:
    answer = httpx.get(url + "/health/ready").json()
    found: list[dict[str, Any]] = answer["replicas"]
    return found


def test_the_api_is_that_of_disa_serve(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    options = {key: value for key, value in SHORT.items() if key != "prompt"}
    answer = client.images.generate(prompt="bag", n=2, extra_body={**options, "seed": 3})
    assert answer.data is not None
    assert [image.b64_json for image in answer.data] == images(post(url, n=2, seed=3))
    events = list(
        client.images.generate(
            prompt="bag", stream=True, partial_images=1, extra_body={**options, "seed": 3}
        )
    )
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert events[-1].b64_json == answer.data[0].b64_json
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="bag", extra_body={"stepz": 3})
    assert refused.value.code == "unknown_parameter"
    assert [model.id for model in client.models.list()] == [NAME]
    assert "<html" in httpx.get(url + "/").text
    assert httpx.get(url + "/nothing").json()["error"]["code"] == "not_found"


def test_a_stream_comes_as_it_is_made(url: str) -> None:
    # A machine that stands still for a moment looks like a buffer, but not three times in turn.
    assert any(comes_as_it_is_made(url) for _ in range(3))


def comes_as_it_is_made(url: str) -> bool:
    """Whether the events of a stream do not come all at its end."""
    body = {**LONG, "stream": True, "progress": True}
    times = []
    with httpx.stream("POST", url + ROUTE, json=body, timeout=PATIENCE) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("event:"):
                times.append(time.monotonic())
    assert len(times) == LONG["num_iterations"] + 1
    return times[-1] - times[0] > 3 * (times[1] - times[0])


def test_any_replica_answers_for_the_results_of_all(url: str) -> None:
    wanted = post(url, seed=1, response_format="url", n=2).json()["data"]
    for image in wanted:
        assert image["url"].startswith(f"{url}/v1/images/")
        found = {httpx.get(image["url"]).content for _ in range(6)}
        assert len(found) == 1
        assert found.pop().startswith(b"\x89PNG")
    assert httpx.delete(wanted[0]["url"]).json()["deleted"]
    assert {httpx.get(wanted[0]["url"]).status_code for _ in range(4)} == {404}


def test_health_and_metrics_are_those_of_all(url: str) -> None:
    assert httpx.get(url + "/health/live").status_code == 200
    assert [each["models"][NAME]["state"] for each in replicas(url)] == ["ready"] * 2
    lines = httpx.get(url + "/metrics").text.splitlines()
    ready = [line for line in lines if line.startswith("disa_ready{")]
    assert len(ready) == 2
    assert sum(line.startswith("# TYPE disa_ready ") for line in lines) == 1
    assert {str(each["process"]) for each in replicas(url)} == {
        line.split('replica="')[1].split('"')[0].split(":")[1] for line in ready
    }


def running(url: str) -> list[int]:
    """Images under way in each replica."""
    return [each["models"][NAME]["running"] for each in replicas(url)]


def cancelled(url: str) -> float:
    """Images given up so far, of all replicas."""
    lines = httpx.get(url + "/metrics").text.splitlines()
    counts = [line for line in lines if 'outcome="cancelled"' in line and "_total{" in line]
    assert counts
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def test_a_client_that_hangs_up_frees_its_images(url: str) -> None:
    before = cancelled(url)
    body = {**LONG, "n": 10, "steps": "1000:1000", "stream": True, "progress": True}
    with httpx.stream("POST", url + ROUTE, json=body, timeout=PATIENCE) as answer:
        assert answer.status_code == 200
        next(answer.iter_lines())
    # Not asked while they run: the fastest machine may finish them before it answers.
    until(lambda: cancelled(url) == before + 10)
    assert sum(running(url)) == 0


def test_nothing_is_lost_with_a_replica_that_is_killed(url: str) -> None:
    seeds = range(12)
    with concurrent.futures.ThreadPoolExecutor(len(seeds) + 4) as pool:
        streamed = [pool.submit(stream_of, url, seed=seed) for seed in range(4)]
        under_way = [pool.submit(post, url, **LONG, seed=seed) for seed in seeds]
        until(lambda: min(running(url)) >= 2)
        victim = replicas(url)[0]["process"]
        os.kill(victim, signal.SIGKILL)
        later = [pool.submit(post, url, seed=seed) for seed in seeds]
        made = [images(answer.result()) for answer in under_way]
        assert all(images(answer.result()) for answer in later)
        whole = [
            *(("image_generation.progress", iteration) for iteration in range(1, 17)),
            ("image_generation.completed", None),
        ]
        assert [events.result() for events in streamed] == [whole] * 4
    until(lambda: len(replicas(url)) == 2, 3 * PATIENCE)
    assert victim not in [each["process"] for each in replicas(url)]
    assert len({image for [image] in made}) == len(seeds)


def stream_of(url: str, **body: Any) -> list[tuple[str, int | None]]:
    """Types and iterations of the events of a stream."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    options = {key: value for key, value in LONG.items() if key != "prompt"}
    events = client.images.generate(
        prompt="bag", stream=True, extra_body={**options, **body, "progress": True}
    )
    return [(event.type, getattr(event, "iteration", None)) for event in events]


def test_images_under_way_finish_when_the_application_ends(url: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        under_way = [pool.submit(post, url, **LONG, seed=seed) for seed in range(4)]
        until(lambda: sum(running(url)) == 4)
        serve.delete("disa")
        assert all(images(answer.result()) for answer in under_way)
