"""Connections that a client holds open."""

import asyncio
import json
import socket
import time

import httpx
import pytest

from disa.server.http.protocol import GuardedProtocol
from disa.server.settings import ServerSettings

from ..conftest import PATIENCE, RunningServer, running_server, until

ROUTE = "/v1/images/generations"


def is_served(url: str) -> bool:
    answer = httpx.post(url + ROUTE, json={"prompt": "0"}, timeout=PATIENCE)
    return answer.status_code == 200


def test_half_open_and_slow_clients_do_not_hold_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GuardedProtocol, "header_seconds", 1.0)
    with running_server(settings=ServerSettings(port=0, body_seconds=1.0)) as running:
        host, port = running.url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port)), PATIENCE) for _ in range(50)]
        slow = socket.create_connection((host, int(port)), PATIENCE)
        half = socket.create_connection((host, int(port)), PATIENCE)
        head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        half.sendall(f"{head}content-length: 100\r\n\r\n{{".encode())
        assert is_served(running.url), "others are served meanwhile"
        assert not sends_byte_by_byte(slow, b"GET /health/live HTTP/1.1\r\n" * 100)
        assert b"408" in half.recv(100)
        assert all(connection.recv(1) == b"" for connection in silent), "they were dropped"


def sends_byte_by_byte(connection: socket.socket, data: bytes) -> bool:
    """Whether all of it could be sent."""
    try:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
    except OSError:
        return False
    return True


def test_a_client_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "write_seconds", 1.0)
    with running_server() as running:
        result_id = asyncio.run(running.service.results.add(bytes(30 << 20), "image/png"))
        host, port = running.url.removeprefix("http://").split(":")
        lazy = socket.create_connection((host, int(port)), PATIENCE)
        lazy.sendall(f"GET /v1/images/{result_id} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        until(lambda: running.server.server_state.connections)
        until(lambda: not running.server.server_state.connections)
        assert is_served(running.url)
        lazy.close()


def test_a_client_that_reads_slowly_gets_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "write_seconds", 1.0)
    with running_server() as running:
        whole = bytes(20 << 20)
        result_id = asyncio.run(running.service.results.add(whole, "image/png"))
        host, port = running.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE) as slow:
            head = f"GET /v1/images/{result_id} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
            slow.sendall(head.encode())
            found = 0
            while part := slow.recv(1 << 20):
                found += len(part)
                time.sleep(0.2 * len(part) / (1 << 20))
            assert found > len(whole)


def test_unused_connections_stay_open_longer_than_clients_use_them(
    served: RunningServer,
) -> None:
    kept_by_clients = httpx.Limits().keepalive_expiry
    assert kept_by_clients is not None
    assert served.server.config.timeout_keep_alive > kept_by_clients


def connect(url: str, buffer: int | None = None) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE)
    connection.connect((host, int(port)))
    return connection


def test_the_rest_of_a_body_that_nobody_reads_does_not_hold_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(GuardedProtocol, "header_seconds", 0.5)
    with running_server() as running, connect(running.url) as dripping:
        head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        dripping.sendall(head.encode())
        assert b"415" in dripping.recv(100), "it is answered before its body has arrived"
        assert not sends_byte_by_byte(dripping, b"x" * 200)
        until(lambda: not running.server.server_state.connections)


def test_a_body_that_arrives_late_but_in_time_is_followed_by_other_requests(
    served: RunningServer,
) -> None:
    with connect(served.url) as late:
        late.sendall(f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n".encode())
        assert b"415" in late.recv(100)
        until(lambda: served.server.server_state.total_requests)
        late.sendall(b"xxxx")
        late.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        answers = b""
        while b"alive" not in answers:
            part = late.recv(1000)
            assert part
            answers += part
        assert b"200 OK" in answers


def test_a_client_that_leaves_a_little_unread_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedProtocol, "write_seconds", 0.5)
    with running_server() as running, connect(running.url, 4096) as lazy:
        state = running.server.server_state
        result_id = asyncio.run(running.service.results.add(bytes(30_000), "image/png"))
        request = f"GET /v1/images/{result_id} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        [connection] = wait_for_one(running)
        for number in range(1, 2000):
            lazy.sendall(request)
            until(lambda number=number: state.total_requests == number)  # type: ignore[misc]
            if waiting := connection.transport.get_write_buffer_size():
                break
        assert 0 < waiting < 64 << 10, "less than a stream's usual limit"
        until(lambda: not state.connections)


def wait_for_one(running: RunningServer) -> list[GuardedProtocol]:
    until(lambda: running.server.server_state.connections)
    return list(running.server.server_state.connections)  # type: ignore[arg-type]


def test_too_many_connections_are_refused_like_everything_else() -> None:
    with running_server(settings=ServerSettings(port=0, max_connections=3)) as running:
        with connect(running.url), connect(running.url):
            until(lambda: len(running.server.server_state.connections) == 2)
            refused = httpx.post(running.url + ROUTE, json={"prompt": "0"}, timeout=PATIENCE)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "too_many_connections"
            assert "retry-after" in refused.headers
        until(lambda: not running.server.server_state.connections)
        assert is_served(running.url)


@pytest.mark.parametrize("request_line", [b"NOT HTTP", b"GET / HTTP/1.1\r\nbad header\r\nhost: x"])
def test_what_is_not_http_is_answered_in_json(request_line: bytes) -> None:
    with running_server() as running:
        host, port = running.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), PATIENCE)
        connection.sendall(request_line + b"\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.lower().split(b"\r\n")
    error = json.loads(body)["error"]
    assert (error["code"], error["type"]) == ("invalid_http", "invalid_request_error")
