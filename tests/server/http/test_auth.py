"""API keys."""

from pathlib import Path

import httpx
import openai
import pytest

from disa.errors import DisaError
from disa.server.http.auth import read_keys
from disa.server.settings import ServerSettings

from ..conftest import running_server

ROUTE = "/v1/images/generations"


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# a comment\nfirst-key-1\n\nsecond-key-2\n")
    settings = ServerSettings(port=0, api_keys=read_keys(file))
    with running_server(settings=settings) as running:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Bearer"},
            {"authorization": "first-key-1"},
            {"authorization": "Basic first-key-1"},
            {"authorization": "Bearer first-key-12"},
        ):
            for answer in (
                httpx.post(running.url + ROUTE, json={"prompt": "0"}, headers=headers),
                httpx.get(running.url + "/v1/models", headers=headers),
                httpx.delete(running.url + "/v1/images/x", headers=headers),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (
                    401,
                    "invalid_api_key",
                )
        for key in ("first-key-1", "second-key-2"):
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)
            url = client.images.generate(prompt="0", response_format="url").data[0].url
            assert httpx.get(url).status_code == 200, "the URL itself is the secret"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="none").models.list()
        for path in ("/health/live", "/health/ready", "/metrics", "/"):
            assert httpx.get(running.url + path).status_code == 200


@pytest.mark.parametrize(
    "content", ["", "# none\n", "short\n", "with a blank in it\n", "schlüssel\n"]
)
def test_key_files_that_have_no_key(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(DisaError) as raised:
        read_keys(tmp_path / "keys")
    assert "schl" not in str(raised.value)
    assert "short" not in str(raised.value)
