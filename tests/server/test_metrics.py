"""Health and metrics."""

import concurrent.futures
import threading

import httpx
from prometheus_client.parser import text_string_to_metric_families

from disa.server.settings import ServerSettings

from .conftest import PATIENCE, RunningServer, running_server, until
from .fake_family import FakeFamily

ROUTE = "/v1/images/generations"


def samples(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """The value of each sample, by its name and the values of its labels."""
    text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_done_is_counted(served: RunningServer, client: httpx.Client) -> None:
    body = {"prompt": "pear", "n": 3, "steps": "7", "stream": True, "partial_images": 2}
    assert client.post(ROUTE, json=body).status_code == 200
    assert client.post(ROUTE, json={"prompt": "0", "n": 0}).status_code == 400
    found = samples(client)
    assert found["disa_requests_total", "fake", "200"] == 1
    assert found["disa_requests_total", "", "400"] == 1
    assert found["disa_images_total", "fake", "finished"] == 3
    assert found["disa_queue_seconds_count", "fake"] == 3
    assert found["disa_first_partial_image_seconds_count", "fake"] == 3
    assert found["disa_iteration_images_count", "fake"] == 4
    assert found["disa_iteration_images_sum", "fake"] == 12
    assert found["disa_backbone_batch_images_sum", "fake"] == 12
    assert found["disa_head_calls_total", "fake"] == 4 * 7
    assert found["disa_head_rows_total", "fake"] == 4 * 7 * 3
    assert found["disa_running_images", "fake"] == 0
    assert found["disa_queue_images", "fake"] == 0
    assert found["disa_ready", "fake"] == 1
    assert found["disa_stage_seconds_total", "fake", "preview"] > 0
    assert ("process_resident_memory_bytes",) in found
    text = client.get("/metrics").text
    assert 'disa_model_info{engine="fake engine"' in text


def test_failed_and_cancelled_images_are_counted(
    served: RunningServer, client: httpx.Client
) -> None:
    def check(taken: object) -> None:
        raise ValueError("no")

    served.family.failing = check
    assert client.post(ROUTE, json={"prompt": "0", "n": 2}).status_code == 500
    until(lambda: served.worker.running == 0)
    found = samples(client)
    assert found["disa_images_total", "fake", "failed"] == 2
    assert found["disa_requests_total", "fake", "500"] == 1


def test_images_that_end_in_the_queue_are_counted() -> None:
    family, go = FakeFamily(), threading.Event()
    settings = ServerSettings(port=0, max_images=1, request_timeout=1.0)
    with running_server({"fake": family}, settings) as running:
        family.entered = lambda: go.wait(PATIENCE)
        with httpx.Client(base_url=running.url, timeout=PATIENCE) as client:
            late = client.post(ROUTE, json={"prompt": "0", "n": 3, "num_iterations": 1})
            assert late.status_code == 504
            go.set()
            until(lambda: running.worker.running + len(running.worker.queue) == 0)
            found = samples(client)
            ended = {key[2]: value for key, value in found.items() if key[0] == "disa_images_total"}
            assert ended["cancelled"] >= 2, "two of them never left the queue"
            assert sum(ended.values()) == 3
            go.clear()
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                refused = pool.submit(client.post, ROUTE, json={"prompt": "0", "n": 3})
                until(lambda: len(running.worker.queue) == 2)
                running.worker.drain()
                assert refused.result().status_code == 503
            assert samples(client)["disa_images_total", "fake", "failed"] == 2
            go.set()


def test_health(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "alive"}
    for path in ("/health/live", "/health", "/health/ready"):
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
    for path in ("/health", "/health/ready"):
        state = client.get(path)
        assert state.status_code == 200
        assert state.json() == {
            "status": "ready",
            "models": {
                "fake": {"state": "ready", "running": 0, "waiting": 0, "warmed_up_images": [1]}
            },
        }
