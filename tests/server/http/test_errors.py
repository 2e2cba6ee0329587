"""Exceptions as answers in the format of OpenAI's API."""

import logging

import pytest

from disa.errors import DamagedFile, EngineError, InvalidRequest, OutOfMemory
from disa.server.http.errors import ApiError, as_api_error
from disa.server.scheduling.scheduler import NotFinite
from disa.server.scheduling.waiting import Draining, QueueFull


@pytest.mark.parametrize(
    ("error", "status", "code", "kind"),
    [
        (QueueFull("full"), 429, "queue_full", "rate_limit_error"),
        (Draining("stopping"), 503, "shutting_down", "server_error"),
        (OutOfMemory("the device"), 503, "out_of_memory", "server_error"),
        (MemoryError(), 503, "out_of_memory", "server_error"),
        (NotFinite("values"), 422, "not_finite", "invalid_request_error"),
        (InvalidRequest("no"), 400, "invalid_value", "invalid_request_error"),
        (EngineError("broken"), 500, "engine_error", "server_error"),
        (DamagedFile("broken"), 500, "engine_error", "server_error"),
        (ZeroDivisionError("secret"), 500, "internal_error", "server_error"),
        (
            ApiError(401, "no key", "invalid_api_key"),
            401,
            "invalid_api_key",
            "authentication_error",
        ),
    ],
)
def test_every_error_has_an_answer(error: Exception, status: int, code: str, kind: str) -> None:
    answer = as_api_error(error, retry_after=9)
    assert (answer.status, answer.code, answer.type) == (status, code, kind)
    assert answer.content()["error"]["message"] == answer.message
    assert (answer.headers.get("retry-after") == "9") == (code in ("queue_full", "shutting_down"))


def test_details_of_a_bug_are_logged_and_not_sent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("disa"), "propagate", True)
    with caplog.at_level(logging.ERROR):
        answer = as_api_error(ZeroDivisionError("secret"))
    assert "secret" not in str(answer.content())
    assert "secret" in caplog.text
