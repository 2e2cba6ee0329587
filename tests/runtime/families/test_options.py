from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disa.errors import DisaError, InvalidRequest
from disa.runtime.families.masked.partition import prediction_counts
from disa.runtime.families.options import (
    Limits,
    SamplingOptions,
    canonical_defaults,
    check_value,
    plan_defaults,
)
from disa.runtime.families.registry import OPTIONS, checked_defaults
from disa.runtime.sampling.schedule import AnnealedSchedule, FittedSchedule

TOKENS = {"count": 64, "stride": 16}
FITTED = FittedSchedule((9, 5), (24, 40), (0,))
DEFAULTS: Mapping[str, dict[str, Any]] = {
    "mar": {"iterations": 64, "steps": "50:5", "cfg": 2.9, "cfg_schedule": "linear"},
    "harmon": {"num_iterations": 64, "size": "128"},
    "flowar": {"steps": "25:15", "cfg": 2.4, "guidance_interval": 0.9},
    "xar": {"steps": "50:15", "cfg": 2.7},
}


@pytest.mark.parametrize(
    ("family", "overrides", "words"),
    [
        ("xar", {"sampler": "ddim"}, "a xar model has no option sampler"),
        ("mar", {"size": "512"}, "a mar model has no option size"),
        ("mar", {"guidance_interval": 0.5}, "no option guidance_interval"),
        ("mar", {"iterations": 3}, "no option iterations"),
        ("mar", {"num_iterations": 100}, "100 iterations are more than the 64 tokens"),
        ("harmon", {"num_iterations": 65}, "65 iterations are more than the 64 tokens"),
        (
            "mar",
            {"num_iterations": 0},
            "number of iterations must be a whole number, at least 1, not 0",
        ),
        ("mar", {"num_iterations": 2.5}, "a whole number"),
        ("mar", {"guidance_scale": 0}, "guidance scale must be above 0 and below 1000, not 0"),
        ("mar", {"guidance_scale": float("nan")}, "above 0 and below 1000, not nan"),
        ("mar", {"guidance_scale": "3"}, "not 3"),
        ("mar", {"guidance_scale": True}, "not True"),
        ("mar", {"guidance_scale": 10**400}, "guidance scale must be above 0"),
        ("mar", {"temperature": 11}, "temperature must be 0 to 10, not 11"),
        ("flowar", {"guidance_interval": 1.5}, "guidance interval must be 0 to 1, not 1.5"),
        ("mar", {"tolerance": 11}, "tolerance must be 0 to 10"),
        ("mar", {"sampler": "euler"}, "sampler must be one of ddpm, ddim"),
        ("mar", {"sampler": ["ddpm"]}, "sampler must be one of"),
        ("mar", {"strategy": "adaptive", "sampler": "dpm-solver"}, "ddpm and ddim"),
        ("mar", {"tolerance": 0.1, "sampler": "dpm-solver++"}, "ddpm and ddim"),
        ("mar", {"steps": "5:50"}, "above the upper"),
        ("mar", {"steps": ["5"]}, "steps must be text"),
        ("mar", {"schedule": 3}, "a schedule is an object"),
        ("mar", {"schedule": "a\0b"}, "cannot be read"),
        ("mar", {"schedule": AnnealedSchedule(), "steps": "9:3"}, "leave out steps"),
        ("mar", {"order": "spiral"}, "order must be one of random, checkerboard"),
        ("xar", {"order": "random"}, "a xar model has no option order"),
        ("mar", {"schedule": FittedSchedule((9, 5), (1, 62))}, "images of 63 tokens"),
        ("harmon", {"schedule": FittedSchedule((9, 5), (1, 62))}, "images of 63 tokens"),
        ("mar", {"schedule": FITTED, "num_iterations": 3}, "for 2 AR iterations, not 3"),
        ("mar", {"schedule": FITTED, "refresh": "9:5"}, "leave out refresh"),
        ("xar", {"schedule": FITTED}, "fixed in a xar model"),
        ("flowar", {"schedule": FITTED}, "fixed in a flowar model"),
        ("harmon", {"size": "500"}, "multiple of 16"),
        ("harmon", {"size": "big"}, "width x height"),
    ],
)
def test_what_cannot_be(family: str, overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(DisaError, match=words):
        checked_defaults(family, TOKENS, DEFAULTS[family], overrides)


@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults_have_the_names_of_now(family: str) -> None:
    found = checked_defaults(family, TOKENS, DEFAULTS[family], {"steps": "9:3"})
    assert found["steps"] == "9:3"
    assert found.keys() <= {each.name for each in fields(OPTIONS[family])}
    assert canonical_defaults(found) == found


@pytest.mark.parametrize("family", OPTIONS)
def test_an_option_is_the_same_in_every_family(family: str) -> None:
    for other in OPTIONS.values():
        known = {each.name: each for each in fields(other)}
        for each in fields(OPTIONS[family]):
            if each.name in known:
                assert known[each.name].metadata == each.metadata
    assert OPTIONS[family]() == OPTIONS[family]()


def test_later_layers_win() -> None:
    mar = OPTIONS["mar"]
    fitted = FittedSchedule((9, 5))
    plan = {"steps": "50:5", "schedule": fitted, "guidance_scale": 2.0}
    options = mar.of("mar", TOKENS, plan, {"guidance_scale": 3})
    assert (options.guidance_scale, options.step_schedule) == (3.0, fitted)
    assert type(options.guidance_scale) is float
    options = mar.of("mar", TOKENS, plan, {"steps": "20:4"})
    assert str(options.step_schedule) == "linear 20:4"
    options = mar.of("mar", TOKENS, {"strategy": "adaptive"}, {"schedule": fitted})
    assert (options.step_schedule, options.tolerance) == (fitted, 0.0)
    assert mar.of("mar", TOKENS, {"strategy": "adaptive"}, {}).tolerance == 0.05
    assert mar.of("mar", TOKENS, {"strategy": "adaptive"}, {"tolerance": 0}).tolerance == 0


@pytest.mark.parametrize(
    ("family", "tolerance"), [("mar", 0.05), ("harmon", 0.05), ("flowar", 0.01), ("xar", 0.05)]
)
def test_the_default_tolerance_of_adaptive_steps(family: str, tolerance: float) -> None:
    assert OPTIONS[family](strategy="adaptive").tolerance == tolerance
    assert OPTIONS[family]().tolerance == 0


def test_a_schedule_may_say_the_iterations() -> None:
    mar = OPTIONS["mar"]
    plan = {"num_iterations": 32, "refresh": "9:5"}
    options = mar.of("mar", TOKENS, plan, {"schedule": FITTED})
    assert (options.num_iterations, options.partition(64)) == (2, [24, 40])
    assert options.refresh == "0"
    assert not options.refresh_plan.is_full(1)
    only_tokens = FittedSchedule((9, 5), (24, 40))
    assert mar.of("mar", TOKENS, plan, {"schedule": only_tokens}).refresh == "9:5"
    assert options.to_json()["schedule"] == "fitted 9 5, tokens 24 40, refresh 0"


def test_a_schedule_of_the_plan_yields_to_the_request() -> None:
    mar = OPTIONS["mar"]
    plan = plan_defaults(checked_defaults("mar", TOKENS, {}, {"schedule": FITTED}))
    assert plan["num_iterations"] == 2
    assert mar.of("mar", TOKENS, plan, {}).partition(64) == [24, 40]
    other = mar.of("mar", TOKENS, plan, {"num_iterations": 3})
    assert (other.partition(64), other.refresh) == (prediction_counts(64, 3), None)
    assert other.table(1).timesteps.shape == mar(steps="7:7").table(0).timesteps.shape
    assert mar.of("mar", TOKENS, plan, {"refresh": "1:0"}).refresh == "1:0"
    assert mar.of("mar", TOKENS, plan, {"refresh": "1:0"}).partition(64) == [24, 40]
    assert mar.of("mar", TOKENS, plan, {"steps": "9:3"}).refresh is None


class Own:
    """A schedule of a caller."""

    def __init__(self, count: Any) -> None:
        self.count = count

    def steps(self, iteration: int, iterations: int) -> Any:
        return self.count


@pytest.mark.parametrize("family", sorted(OPTIONS))
@pytest.mark.parametrize("count", [27.5, 9.0, 1, 1001, None, "9"])
def test_a_schedule_that_gives_no_step_count(family: str, count: Any) -> None:
    options = OPTIONS[family](schedule=Own(count))
    with pytest.raises(InvalidRequest, match="for AR iteration 3 must be a whole number from 2 to"):
        options.steps_of(2, 4)


def test_a_schedule_of_the_caller() -> None:
    assert OPTIONS["mar"](schedule=Own(np.int64(9))).steps_of(0, 4) == 9


def test_what_decides_an_image_as_json() -> None:
    options = OPTIONS["flowar"](steps="9:3", strategy="cosine", guidance_scale=2)
    assert options.to_json() == {
        "schedule": "cosine 9:3",
        "guidance_scale": 2.0,
        "tolerance": 0.0,
        "guidance_interval": 1.0,
    }


@given(st.floats(allow_nan=True, allow_infinity=True), st.booleans())
def test_limits_hold(value: float, inside: bool) -> None:
    limits = Limits(0, 10, open=inside)
    allowed = 0 < value < 10 if inside else 0 <= value <= 10
    assert limits.hold(value) == allowed


VALUES = st.one_of(
    *(st.none(), st.text(), st.floats(), st.integers(), st.binary()), st.lists(st.integers())
)


@given(st.sampled_from(sorted(OPTIONS)), VALUES, st.data())
def test_any_value_is_taken_or_refused(family: str, value: Any, data: st.DataObject) -> None:
    each = data.draw(st.sampled_from(fields(OPTIONS[family])))
    with suppress(DisaError):
        OPTIONS[family](**{each.name: value})


def test_metadata_are_whole() -> None:
    for kind in OPTIONS.values():
        assert issubclass(kind, SamplingOptions)
        for each in fields(kind):
            assert each.metadata["help"].endswith(".")
            if each.default is not None and each.name != "schedule":
                assert check_value(each.name, each.metadata, each.default) == each.default


def test_defaults_of_a_plan_that_cannot_be() -> None:
    mar = OPTIONS["mar"]
    with pytest.raises(InvalidRequest, match=r"the plan's defaults: .* no option size.* again"):
        mar.of("mar", TOKENS, {"size": "512"}, {})
    with pytest.raises(DisaError, match="the plan's schedule"):
        plan_defaults({"schedule": "/etc/hostname"})
    with pytest.raises(InvalidRequest, match="must list the steps"):
        checked_defaults("mar", TOKENS, {}, {"schedule": AnnealedSchedule()})
    stored = checked_defaults("mar", TOKENS, {}, {"schedule": FittedSchedule((9, 5))})
    assert plan_defaults(stored)["schedule"] == FittedSchedule((9, 5))


def test_steps_and_sizes_are_whole_numbers_of_any_library() -> None:
    assert OPTIONS["mar"](steps=np.int64(10)).steps_of(0, 4) == 10
    assert OPTIONS["harmon"](size=np.int32(256)).to_json()["size"] == "256"
    for wrong in (np.float64(10), np.bool_(True), True):
        with pytest.raises(InvalidRequest, match="steps must be text"):
            OPTIONS["mar"](steps=wrong)
