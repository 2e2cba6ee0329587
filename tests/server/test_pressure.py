"""Too much, too slow, too little memory, gone clients: what the server does then."""

import concurrent.futures
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import openai
import pytest

from disa.errors import EngineError, OutOfMemory
from disa.runtime.generation import Sample
from disa.server.images.encoding import Encoding
from disa.server.settings import ServerSettings

from .conftest import PATIENCE, RunningServer, running_server, until
from .fake_family import FakeFamily

ROUTE = "/v1/images/generations"
LONG = {"prompt": "0", "num_iterations": 64}


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url + ROUTE, json={"prompt": "0", **body}, timeout=PATIENCE)


def code_of(answer: httpx.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


@pytest.fixture
def held() -> Iterator[tuple[RunningServer, threading.Event]]:
    """A server whose model waits in each iteration until the event is set."""
    family, go = FakeFamily(), threading.Event()
    settings = ServerSettings(port=0, max_images=4, max_queue=10, request_timeout=PATIENCE)
    with running_server({"fake": family}, settings) as running:
        family.entered = lambda: go.wait(PATIENCE)
        yield running, go
        go.set()


def test_a_full_queue_is_refused_with_a_time_to_come_back(held: Any) -> None:
    running, go = held
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        under_way = pool.submit(post, running.url, n=4)
        until(lambda: running.worker.running == 4)
        waiting = pool.submit(post, running.url, n=9)
        until(lambda: len(running.worker.queue) == 9)
        refused = post(running.url, n=2)
        assert (refused.status_code, code_of(refused)) == (429, "queue_full")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        last = pool.submit(post, running.url, n=1)
        until(lambda: len(running.worker.queue) == 10)
        go.set()
        assert [len(f.result().json()["data"]) for f in (under_way, waiting, last)] == [4, 9, 1]


def test_the_official_client_comes_back_by_itself(held: Any) -> None:
    running, go = held
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=5)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(post, running.url, n=4)]
        until(lambda: running.worker.running == 4)
        futures.append(pool.submit(post, running.url, n=10))
        until(lambda: len(running.worker.queue) == 10)
        running.worker.retry_after = lambda: 1  # type: ignore[method-assign]
        late = pool.submit(client.images.generate, prompt="pear")
        time.sleep(0.3)
        go.set()
        assert late.result().data
        assert all(future.result().status_code == 200 for future in futures)


def test_a_client_that_disconnects_frees_its_images(held: Any) -> None:
    running, go = held
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        other = pool.submit(post, running.url)
        until(lambda: running.worker.running == 1)
        for body in ({**LONG, "n": 3}, {**LONG, "n": 3, "stream": True}):
            with disconnect_later(running.url, body):
                until(lambda: len(running.worker.queue) == 3)
            until(lambda: not running.worker.queue.submitted())
        go.set()
        assert other.result().status_code == 200
    assert running.family.steps[-4:] == [1, 1, 1, 1], "nobody else was stepped"


def test_a_client_that_disconnects_while_its_images_are_running(held: Any) -> None:
    running, go = held
    for stream in (False, True):
        go.clear()
        with disconnect_later(running.url, {**LONG, "n": 3, "stream": stream}):
            until(lambda: running.worker.running == 3)
        until(lambda: all(ticket.cancelled for ticket in running.worker.scheduler.running))
        done = len(running.family.steps)
        go.set()
        until(lambda: running.worker.running == 0)
        assert len(running.family.steps) <= done + 2, "they left at the next iteration"


def disconnect_later(url: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request; closed at the end of a `with`."""
    data = json.dumps(body).encode()
    return send_raw(url, ROUTE, data, len(data))


def send_raw(url: str, path: str, data: bytes, length: int) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {length}\r\n\r\n".encode() + data)
    return connection


def test_a_deadline_that_passes_frees_the_images() -> None:
    family = FakeFamily()
    with running_server({"fake": family}, ServerSettings(port=0, request_timeout=1.5)) as running:
        family.seconds = 0.1
        late = post(running.url, num_iterations=64)
        assert (late.status_code, code_of(late)) == (504, "timeout")
        until(lambda: running.worker.running == 0, 3.0)
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        events = client.images.generate(prompt="0", stream=True, extra_body={"num_iterations": 64})
        with pytest.raises(openai.APIError, match="not ready after"):
            list(events)
        assert post(running.url, num_iterations=1).status_code == 200


def test_a_request_that_fails_fails_alone(served: RunningServer) -> None:
    def check(samples: Sequence[Sample]) -> None:
        if any(sample.request.condition == 2 for sample in samples):
            raise EngineError("the engine refused it")

    served.family.failing = check
    served.family.seconds = 0.02
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: post(served.url, prompt=str(i % 4)), range(12)))
    for i, answer in enumerate(answers):
        assert answer.status_code == (500 if i % 4 == 2 else 200)
        if i % 4 == 2:
            assert code_of(answer) == "engine_error"
            assert "the engine refused it" in answer.json()["error"]["message"]


def test_what_is_inside_an_unexpected_error_stays_inside(served: RunningServer) -> None:
    def check(samples: Sequence[Sample]) -> None:
        raise RuntimeError("secret")

    served.family.failing = check
    answer = post(served.url)
    assert (answer.status_code, code_of(answer)) == (500, "internal_error")
    assert "secret" not in answer.text
    served.family.failing = lambda samples: None
    assert post(served.url).status_code == 200


def test_an_image_that_cannot_be_encoded_is_an_error_like_others(
    served: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> bytes:
        raise RuntimeError("secret")

    monkeypatch.setattr(Encoding, "encode", refuse)
    answer = post(served.url)
    assert (answer.status_code, code_of(answer)) == (500, "internal_error")
    assert answer.headers["x-request-id"], "only an error that is handled has it"
    streamed = post(served.url, stream=True)
    assert streamed.text.startswith("event: error\n")
    assert "internal_error" in streamed.text
    assert "secret" not in answer.text + streamed.text
    monkeypatch.undo()
    assert post(served.url).status_code == 200


def test_out_of_memory_is_told_and_spoils_nothing_later(served: RunningServer) -> None:
    def check(samples: Sequence[Sample]) -> None:
        if len(samples) > 2 or any(s.request.options.num_iterations == 64 for s in samples):
            raise OutOfMemory("the device is full")

    served.family.failing = check
    assert post(served.url, n=10).status_code == 200
    answer = post(served.url, num_iterations=64)
    assert (answer.status_code, code_of(answer)) == (503, "out_of_memory")
    assert post(served.url, n=3).status_code == 200
    assert 'disa_out_of_memory_total{model="fake"}' in httpx.get(served.url + "/metrics").text


def test_numbers_that_are_not_finite(served: RunningServer) -> None:
    served.family.finite = lambda sample: sample.request.options.guidance_scale < 100
    answer = post(served.url, guidance_scale=900)
    assert (answer.status_code, code_of(answer)) == (422, "not_finite")
    assert post(served.url).status_code == 200


def test_a_stream_tells_of_a_failure(served: RunningServer) -> None:
    def check(samples: Sequence[Sample]) -> None:
        if samples[0].iteration == 2:
            raise EngineError("the engine refused it")

    served.family.failing = check
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    events = client.images.generate(prompt="0", stream=True, partial_images=3)
    assert next(events).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError, match="the engine refused it"):
        list(events)
