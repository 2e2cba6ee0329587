"""Arguments of the application for Ray Serve."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from disa.errors import InvalidRequest
from disa.server.replicas.arguments import Arguments
from disa.server.settings import ServerSettings


def read(**values: Any) -> Arguments:
    return Arguments.model_validate({"plan": "a.plan", **values})


def test_text_is_read_as_serve_run_gives_it() -> None:
    arguments = read(plan="a.plan,b.plan", threads="2", max_images="8", request_timeout="1.5")
    assert arguments.plan == ["a.plan", "b.plan"]
    assert arguments.threads == 2
    assert arguments.settings() == ServerSettings(max_images=8, request_timeout=1.5)


def test_values_are_read_as_a_configuration_file_gives_them() -> None:
    arguments = read(plan=["a.plan"], policy="static", cors=["https://x.example"], max_queue=10)
    expected = ServerSettings(policy="static", cors=("https://x.example",), max_queue=10)
    assert arguments.settings() == expected
    assert read(cors="https://x,https://y").settings().cors == ("https://x", "https://y")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_imagez": "8"}, "max_imagez"),
        ({"max_images": "many"}, "1 to 4096"),
        ({"max_images": "0"}, "1 to 4096"),
        ({"policy": "none"}, "static"),
        ({"port": "80"}, "there is no setting 'port'"),
        ({"api_keys": "secret"}, "there is no setting 'api_keys'"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        read(**values).settings()


@pytest.mark.parametrize("values", [{"engine": "fast"}, {"threads": "0"}, {"max_replicas": "x"}])
def test_arguments_that_cannot_be(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=next(iter(values))):
        read(**values)


def test_plans_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest, match=f"{tmp_path}/a.plan"):
        read().plans()
    (tmp_path / "a.plan").touch()
    assert read().plans() == [str(tmp_path / "a.plan")]
