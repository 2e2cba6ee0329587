"""Request bodies that are too large or not JSON."""

from collections.abc import Iterator

import httpx
import pytest

ROUTE = "/v1/images/generations"


def code_of(answer: httpx.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


def test_large_bodies_are_refused(client: httpx.Client) -> None:
    answer = client.post(ROUTE, json={"prompt": "x" * (1 << 20)})
    assert (answer.status_code, code_of(answer)) == (413, "body_too_large")

    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 15)

    headers = {"content-type": "application/json"}
    answer = client.post(ROUTE, content=parts(), headers=headers)
    assert (answer.status_code, code_of(answer)) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"guidance_scale": NaN, "prompt": "0"}', 400),
        (b'{"seed": 1e400, "prompt": "0"}', 400),
        (b'{"prompt": "0", "seed": 123456789012345678901234567890}', 400),
        (b"[" * 100_000, 400),
        (b'{"model": ["fake"], "prompt": "0"}', 400),
        (b"\xff\xfe", 400),
    ],
)
def test_bodies_that_are_not_requests(client: httpx.Client, content: bytes, status: int) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    answer = client.post(ROUTE, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_types_are_refused_so_that_no_foreign_page_can_send_them(
    client: httpx.Client,
) -> None:
    answer = client.post(ROUTE, content=b'{"prompt": "0"}', headers={"content-type": "text/plain"})
    assert (answer.status_code, code_of(answer)) == (415, "unsupported_type")
