"""Checks of a request against the model that will generate its images."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from disa.server.http.errors import ApiError
from disa.server.images.validation import validate_request
from disa.server.scheduling.model import WarmUp
from disa.server.scheduling.worker import State

from ..fake_family import FakeFamily, FakeOptions, fake_model, option


@dataclass(frozen=True, kw_only=True)
class SizedOptions(FakeOptions):
    size: str = option("64", str)


class SizedFamily(FakeFamily):
    Options = SizedOptions

    def options(self, overrides: Mapping[str, Any]) -> SizedOptions:
        return SizedOptions(**overrides)


def size_of(size: str | None) -> str:
    """The option of a request for images of this size, from a plan for 64x32."""
    worker: Any = SimpleNamespace(
        name="fake",
        state=State.READY,
        model=fake_model(SizedFamily()),
        warmed=WarmUp((1,), 0.0, width=64, height=32),
    )
    request = validate_request({"prompt": "0", "size": size}, {"fake": worker})
    found: str = request.images[0].request.options.size
    return found


@pytest.mark.parametrize("size", ["64x32", "32", "128x64", "16x500"])
def test_a_size_is_that_of_the_request(size: str) -> None:
    assert size_of(size) == size


@pytest.mark.parametrize("size", [None, "auto"])
def test_no_size_is_that_of_the_plan(size: str | None) -> None:
    assert size_of(size) == "64"


@pytest.mark.parametrize("size", ["128x65", "4096x4096", "99999", "1x8193"])
def test_an_image_that_would_take_all_memory_is_refused(size: str) -> None:
    with pytest.raises(ApiError, match="at most 4 times the pixels of 64x32") as raised:
        size_of(size)
    assert (raised.value.status, raised.value.param) == (400, "size")


@pytest.mark.parametrize("size", ["big", "64x", "x64", "64x64x64", "-1x5", "\u0665x\u0665"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(ApiError, match="WIDTHxHEIGHT"):
        size_of(size)
