"""Requests that replicas answer, and what happens when replicas die."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Scope

from disa.server.http.sse import event_bytes
from disa.server.replicas.forward import ATTEMPTS, Forward, ReplicaLost, event_key, with_seed

ROUTE = "/v1/images/generations"
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]}
LOST = ReplicaLost()


def part(data: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def event(kind: str, image: int = 0, **others: Any) -> Message:
    return part(event_bytes({"type": f"image_generation.{kind}", "image": image, **others}))


class FakeReplicas:
    """Each request to a replica plays the next script: messages, or the end of the replica."""

    def __init__(self, *scripts: Sequence[Message | ReplicaLost], pause: float = 0.0) -> None:
        self.scripts, self.pause = list(scripts), pause
        self.bodies: list[bytes] = []
        self.scopes: list[Scope] = []
        self.closed = 0

    async def call(self, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
        self.bodies.append(body)
        self.scopes.append(scope)
        try:
            for message in self.scripts.pop(0):
                await asyncio.sleep(self.pause)
                if isinstance(message, ReplicaLost):
                    raise message
                yield message
        finally:
            self.closed += 1

    def forward(self, seconds: float = 10.0) -> Forward:
        return Forward(self.call, 1000, 10.0, seconds)


def request(app: ASGIApp, method: str = "POST", path: str = ROUTE, **options: Any) -> Any:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def test_an_answer_is_passed_on() -> None:
    replicas = FakeReplicas([START, part(b"one "), part(b"two", more=False)])
    answer = request(replicas.forward(), "GET", "/page/a.js?b=c", headers={"x-key": "k"})
    assert (answer.status_code, answer.text, answer.headers["x-a"]) == (200, "one two", "b")
    [scope] = replicas.scopes
    assert (scope["path"], scope["query_string"]) == ("/page/a.js", b"b=c")
    assert (b"x-key", b"k") in scope["headers"]
    assert replicas.bodies == [b""]


def test_another_replica_answers_for_one_that_died() -> None:
    replicas = FakeReplicas([LOST], [START, LOST], [START, part(b"{}", more=False)])
    answer = request(replicas.forward(), json={"prompt": "0"})
    assert (answer.status_code, answer.text) == (200, "{}")
    assert len(set(replicas.bodies)) == 1, "another seed would make another image"
    assert json.loads(replicas.bodies[0])["prompt"] == "0"
    assert replicas.closed == 3


def test_a_request_that_kills_replicas_is_given_up() -> None:
    replicas = FakeReplicas(*[[START, LOST]] * (ATTEMPTS + 1))
    answer = request(replicas.forward(), json={"prompt": "0"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert answer.headers["retry-after"]
    assert len(replicas.bodies) == ATTEMPTS


def test_a_stream_goes_on_where_it_broke_off() -> None:
    first = [event("progress", iteration=1), event("partial_image", partial_image_index=0)]
    rest = [event("progress", iteration=2), event("completed"), part(b"", more=False)]
    alive = part(b": waiting\n\n")
    replicas = FakeReplicas(
        [START, alive, *first, LOST],
        [START, first[1], first[0], LOST],
        [START, *first, *rest],
    )
    answer = request(replicas.forward(), json={"prompt": "0", "stream": True})
    expected = b"".join(message["body"] for message in [alive, *first, *rest])
    assert answer.content == expected


def test_a_replica_that_dies_after_its_answer_has_lost_nothing() -> None:
    replicas = FakeReplicas([START, part(b"{}", more=False), LOST], [START])
    assert request(replicas.forward(), json={"prompt": "0"}).text == "{}"
    assert len(replicas.bodies) == 1


def test_no_part_of_a_file_arrives_twice() -> None:
    whole = [START, part(b"one "), part(b"two", more=False)]
    replicas = FakeReplicas([START, part(b"one "), LOST], whole)
    with pytest.raises(ReplicaLost):
        request(replicas.forward(), "GET", "/page/a.js")
    assert len(replicas.bodies) == 1


def test_a_stream_that_cannot_go_on_ends_with_an_error() -> None:
    begun = [START, event("progress", iteration=1), LOST]
    answer = request(FakeReplicas(*[begun] * ATTEMPTS).forward(), json={"stream": True})
    assert answer.status_code == 200
    events = answer.text.strip().split("\n\n")
    assert len(events) == 2
    assert events[1].startswith("event: error\n")
    assert "replica_lost" in events[1]


def test_a_stream_that_another_replica_refuses_ends_with_its_error() -> None:
    full: Message = {"type": "http.response.start", "status": 429, "headers": []}
    refusal = part(b'{"error": {"message": "no room", "code": "queue_full"}}', more=False)
    replicas = FakeReplicas([START, event("progress", iteration=1), LOST], [full, refusal])
    answer = request(replicas.forward(), json={"stream": True})
    assert answer.status_code == 200
    events = answer.text.strip().split("\n\n")
    assert len(events) == 2
    assert events[1].startswith("event: error\ndata: ")
    assert json.loads(events[1].partition("data: ")[2])["error"]["code"] == "queue_full"


def test_an_answer_that_does_not_begin_is_given_up() -> None:
    replicas = FakeReplicas([START, part(b"late")], pause=5.0)
    answer = request(replicas.forward(seconds=0.05), json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert replicas.closed == 1


def test_an_answer_that_has_begun_takes_its_time() -> None:
    parts = [part(b"x") for _ in range(5)]
    replicas = FakeReplicas([START, *parts, part(b"", more=False)], pause=0.2)
    assert request(replicas.forward(seconds=0.7), "GET", "/").text == "xxxxx"


def test_a_body_that_is_too_large_reaches_no_replica() -> None:
    replicas = FakeReplicas()
    answer = request(replicas.forward(), content=b"x" * 1001)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert replicas.bodies == []


def test_a_client_that_hangs_up_ends_the_request_at_the_replica() -> None:
    replicas = FakeReplicas([START, part(b"x")] * 1000, pause=0.01)
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(asyncio.wait_for(replicas.forward()(scope, receive, send), 8))
    assert replicas.closed == 1


@pytest.mark.parametrize("seed", [0, 7, [1, 2]])
def test_a_seed_that_was_given_stays(seed: Any) -> None:
    body = json.dumps({"prompt": "x", "seed": seed}).encode()
    assert with_seed(body) == body


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
def test_a_body_that_is_no_request_stays(body: bytes) -> None:
    assert with_seed(body) == body


def test_seeds_are_random() -> None:
    made: Callable[[], int] = lambda: json.loads(with_seed(b'{"seed": null}'))["seed"]  # noqa: E731
    assert len({made() for _ in range(20)}) == 20


def test_what_an_event_is_about() -> None:
    assert event_key(b": waiting\n\n") is None
    assert event_key(event_bytes({"type": "error", "error": {}})) is None
    keys = [
        event_key(event(kind, image, **others)["body"])
        for kind, image, others in [
            ("progress", 0, {"iteration": 1}),
            ("progress", 0, {"iteration": 2}),
            ("progress", 1, {"iteration": 1}),
            ("partial_image", 0, {"partial_image_index": 1}),
            ("partial_image", 0, {"partial_image_index": 2}),
            ("completed", 0, {}),
            ("completed", 1, {}),
        ]
    ]
    assert len(set(keys)) == len(keys)
