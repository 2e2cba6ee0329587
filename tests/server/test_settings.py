"""Settings from names and values."""

import pytest

from disa.errors import InvalidRequest
from disa.server.settings import SETTABLE, PolicyName, ServerSettings, read_settings


def test_values_may_be_text_or_numbers() -> None:
    settings = read_settings({"max_images": "8", "request_timeout": 1.5}, cors=("https://a",))
    assert (settings.max_images, settings.request_timeout) == (8, 1.5)
    assert settings.cors == ("https://a",)
    assert settings.max_queue == ServerSettings().max_queue


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"max_imagez": 8}, "there is no setting 'max_imagez'"),
        ({"api_keys": "x"}, "there is no setting 'api_keys'"),
        ({"max_images": 0}, "1 to 4096"),
        ({"request_timeout": "soon"}, "at least 0.1"),
        ({"policy": "none"}, "static"),
        ({"max_queue": 1}, "a whole number, 10 to 1000000, not 1"),
        ({"public_url": "images.example.org"}, "must begin with http:// or https://"),
        ({"public_url": "https:// a"}, "must begin with http"),
    ],
)
def test_settings_that_are_not_valid(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        read_settings(values)


def test_urls_and_origins() -> None:
    settings = ServerSettings(
        public_url="https://images.example.org:8443/disa/", cors=("*", "http://localhost:3000")
    )
    assert settings.public_url == "https://images.example.org:8443/disa/"
    for origin in ("example.org", "https://example.org/", "ftp://example.org", ""):
        with pytest.raises(InvalidRequest, match="without a path"):
            ServerSettings(cors=(origin,))


def test_every_setting_of_a_user_has_help() -> None:
    assert {"max_images", "policy", "public_url"} <= SETTABLE.keys()
    assert not {"api_keys", "host", "port"} & SETTABLE.keys()
    assert all(each.metadata["help"] for each in SETTABLE.values())
    assert SETTABLE["policy"].metadata["choices"] == [str(name) for name in PolicyName]
