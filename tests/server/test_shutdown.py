"""Starting and ending the process."""

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from .conftest import PATIENCE, until

SCRIPT = Path(__file__).parent / "serve_fake.py"
ROUTE = "/v1/images/generations"


@contextmanager
def process(stderr: Any = subprocess.PIPE, **options: Any) -> Iterator[tuple[Any, str]]:
    """A server process and its address."""
    command = [sys.executable, str(SCRIPT), json.dumps(options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line.startswith("disa-serve: http://127.0.0.1:")
            yield running, line.split()[1].rstrip("/")
        finally:
            running.kill()


def ready(url: str) -> bool:
    return httpx.get(url + "/health/ready").status_code == 200


def post(url: str, **body: Any) -> httpx.Response:
    return httpx.post(url + ROUTE, json={"prompt": "0", **body}, timeout=PATIENCE)


def test_not_ready_while_loading() -> None:
    with process(load_seconds=4.0) as (_, url):
        answer = httpx.get(url + "/health/ready")
        assert (answer.status_code, answer.json()["status"]) == (503, "loading")
        assert httpx.get(url + "/health/live").status_code == 200
        refused = post(url)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_loading")
        assert "retry-after" in refused.headers
        assert httpx.get(url + "/v1/models/fake").json()["state"] == "loading"
        assert httpx.get(url + "/").status_code == 200
        until(lambda: ready(url))
        assert post(url).status_code == 200


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    with process(broken=True) as (running, _):
        _, errors = running.communicate(timeout=PATIENCE)
        assert running.returncode == 1
        assert "fake: the engine is of another machine: build it again" in errors


def test_the_first_signal_drains() -> None:
    with process(seconds=0.2, max_images=2) as (running, url):
        until(lambda: ready(url))
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            under_way = pool.submit(post, url, n=2, num_iterations=8)
            until(lambda: models(url)["running"] == 2)
            waiting = pool.submit(post, url, n=2)
            until(lambda: models(url)["waiting"] == 2)
            running.send_signal(signal.SIGTERM)
            refused = waiting.result()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert httpx.get(url + "/health/ready").status_code == 503
            assert httpx.get(url + "/health/live").status_code == 200
            late = post(url)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
            assert len(under_way.result().json()["data"]) == 2
        assert running.wait(PATIENCE) == 0


def models(url: str) -> dict[str, Any]:
    state: dict[str, Any] = httpx.get(url + "/health/ready").json()["models"]["fake"]
    return state


def test_draining_takes_no_longer_than_allowed() -> None:
    with process(seconds=0.9, drain_timeout=0.3) as (running, url):
        until(lambda: ready(url))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(post, url, num_iterations=64)
            until(lambda: models(url)["running"] == 1)
            begin = time.monotonic()
            running.send_signal(signal.SIGINT)
            assert under_way.result().json()["error"]["code"] == "shutting_down"
        assert running.wait(PATIENCE) == 0
        assert time.monotonic() - begin < PATIENCE


def test_a_model_that_is_being_loaded_is_not_waited_for() -> None:
    with process(load_seconds=10 * PATIENCE, drain_timeout=10 * PATIENCE) as (running, url):
        until(lambda: httpx.get(url + "/health/live").status_code == 200)
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == 0


def test_a_second_signal_stops_at_once() -> None:
    with process(seconds=0.5, drain_timeout=60) as (running, url):
        until(lambda: ready(url))
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(post, url, num_iterations=64)
            until(lambda: models(url)["running"] == 1)
            running.send_signal(signal.SIGTERM)
            until(lambda: not ready(url))
            begin = time.monotonic()
            running.send_signal(signal.SIGTERM)
            assert running.wait(PATIENCE) == 128 + signal.SIGTERM
            assert time.monotonic() - begin < 15
            assert isinstance(under_way.exception(), httpx.HTTPError)


def test_a_killed_server_can_be_started_again_at_once() -> None:
    with process(seconds=0.1) as (running, url):
        until(lambda: ready(url))
        port = int(url.rsplit(":", 1)[1])
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(post, url, num_iterations=64)
            until(lambda: models(url)["running"] == 1)
            running.kill()
            assert isinstance(under_way.exception(PATIENCE), httpx.HTTPError)
    with process(port=port) as (_, url):
        until(lambda: ready(url))
        assert post(url).status_code == 200


def test_a_full_disk_stops_nothing() -> None:
    with Path("/dev/full").open("w") as full, process(full) as (running, url):
        until(lambda: ready(url))
        for _ in range(5):
            assert post(url).status_code == 200
        running.send_signal(signal.SIGTERM)
        assert running.wait(PATIENCE) == 0


def test_an_address_in_use_is_one_sentence() -> None:
    with process() as (_, url):
        command = [sys.executable, str(SCRIPT), json.dumps({"port": int(url.rsplit(":", 1)[1])})]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 1
        assert "cannot be used" in done.stderr


def test_logs_are_json_lines_with_the_requests_id() -> None:
    with process(api_keys=["secret-key-1"]) as (running, url):
        until(lambda: ready(url))
        headers = {"authorization": "Bearer secret-key-1", "x-request-id": "mine-1"}
        body = {"prompt": "pear", "n": 2}
        answer = httpx.post(url + ROUTE, json=body, headers=headers)
        assert answer.headers["x-request-id"] == "mine-1"
        odd = httpx.get(url + "/v1/models", headers={"x-request-id": 'a"b' * 99})
        assert odd.headers["x-request-id"].startswith("req_")
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=PATIENCE)
    assert "secret-key-1" not in errors
    lines = [json.loads(line) for line in errors.splitlines()]
    [mine] = [line for line in lines if line.get("request_id") == "mine-1"]
    assert (mine["method"], mine["path"], mine["status"]) == ("POST", ROUTE, 200)
    assert (mine["model"], mine["images"]) == ("fake", 2)
    assert mine["seconds"] >= mine["model_seconds"] >= 0
    assert mine["client"] == "127.0.0.1"
    assert os.linesep not in mine["message"]
