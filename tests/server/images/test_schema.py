"""The types of request bodies, made from the options of a family."""

import time

import pytest

from disa.runtime.families.registry import OPTIONS
from disa.server.http.errors import ApiError
from disa.server.images.schema import (
    ImageRequest,
    describe_options,
    option_names,
    parse,
    request_type,
)

from ..fake_family import FakeOptions


def test_options_of_the_family_are_fields_with_their_limits() -> None:
    kind = request_type(FakeOptions)
    assert kind is request_type(FakeOptions)
    body = parse({"prompt": "0", "num_iterations": 5, "strategy": "constant"}, kind)
    assert (body.num_iterations, body.strategy) == (5, "constant")  # type: ignore[attr-defined]
    assert option_names(FakeOptions) == ["num_iterations", "steps", "strategy", "guidance_scale"]
    assert parse({}, kind).prompt is None


@pytest.mark.parametrize(
    ("content", "param", "code"),
    [
        ({"num_iterations": 65}, "num_iterations", "invalid_value"),
        ({"guidance_scale": 0}, "guidance_scale", "invalid_value"),
        ({"strategy": "cosine"}, "strategy", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": "1"}, "n", "invalid_value"),
        ({"schedule": "/etc/passwd"}, "schedule", "unknown_parameter"),
    ],
)
def test_fields_that_are_not_valid(content: dict[str, object], param: str, code: str) -> None:
    with pytest.raises(ApiError) as raised:
        parse(content, request_type(FakeOptions))
    assert (raised.value.status, raised.value.param, raised.value.code) == (400, param, code)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ({"seed": [-1] * 200_000}, "seed"),
        ({f"key{number}": 0 for number in range(100_000)}, "key0"),
    ],
)
def test_a_body_full_of_mistakes_costs_no_more_than_one(
    content: dict[str, object], param: str
) -> None:
    begin = time.thread_time()
    with pytest.raises(ApiError) as raised:
        parse(content, request_type(FakeOptions))
    assert time.thread_time() - begin < 0.2, "nobody else is served meanwhile"
    assert raised.value.param == param


def test_options_are_described_for_the_page() -> None:
    described = {one["name"]: one for one in describe_options(FakeOptions, FakeOptions())}
    iterations, strategy = described["num_iterations"], described["strategy"]
    assert (iterations["kind"], iterations["low"], iterations["high"]) == ("int", 1, 64)
    assert iterations["default"] == 4
    assert (strategy["kind"], strategy["choices"]) == ("choice", ["linear", "constant"])
    assert "schedule" not in described, "a client could name files of the server"


@pytest.mark.parametrize("family", list(OPTIONS))
def test_every_family_has_a_request_type(family: str) -> None:
    kind = request_type(OPTIONS[family])
    assert issubclass(kind, ImageRequest)
    assert kind.__name__.endswith("ImageRequest")
    assert set(option_names(OPTIONS[family])) <= set(kind.model_fields)
