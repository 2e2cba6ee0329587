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
    ],
)
def test_settings_that_are_not_valid(values: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        read_settings(values)


def test_every_setting_of_a_user_has_help() -> None:
    assert {"max_images", "policy", "public_url"} <= SETTABLE.keys()
    assert not {"api_keys", "host", "port"} & SETTABLE.keys()
    assert all(each.metadata["help"] for each in SETTABLE.values())
    assert SETTABLE["policy"].metadata["choices"] == [str(name) for name in PolicyName]
