"""Paths, methods and origins."""

import httpx

from disa.server.settings import ServerSettings

from .conftest import running_server

ROUTE = "/v1/images/generations"


def code_of(answer: httpx.Response) -> str:
    code: str = answer.json()["error"]["code"]
    return code


def test_paths_and_methods_that_do_not_exist(client: httpx.Client) -> None:
    assert client.get("/v1/other").json()["error"]["code"] == "not_found"
    answer = client.get(ROUTE)
    assert answer.status_code == 404
    answer = client.put(ROUTE, json={})
    assert (answer.status_code, code_of(answer)) == (405, "method_not_allowed")
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/app.py", "/page/"):
        assert client.get(path).status_code == 404


def test_pages_of_other_origins() -> None:
    settings = ServerSettings(port=0, cors=("https://good.example",))
    with running_server(settings=settings) as running:
        for origin, allowed in (("https://good.example", True), ("https://bad.example", False)):
            headers = {"origin": origin, "access-control-request-method": "POST"}
            answer = httpx.options(running.url + ROUTE, headers=headers)
            assert (answer.headers.get("access-control-allow-origin") == origin) is allowed
