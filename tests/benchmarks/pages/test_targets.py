from typing import Any

import pytest

from benchmarks.official.contenders import BF16
from benchmarks.pages.targets import Way, targets

from .made_up import bench, race

DEFAULT = (
    "MAR, int8 with a backbone that remembers, fewer AR iterations: 150 times as fast as the "
    "original's default (256 iterations, 100 steps, fp32)"
)


def judged(*records: dict[str, Any]) -> dict[str, tuple[str, str]]:
    races = [record for record in records if "kind" in record]
    benches = [record for record in records if "variants" in record]
    return {name: (measured, met) for name, measured, met in targets(races, benches)}


def test_targets_are_judged() -> None:
    ways = {"disa openvino bf16": 20.0, "disa openvino bf16 refresh 9:5": 6.0, "disa cpu int8": 3.0}
    found = judged(race(plans=ways), race(batch=8, plans={"disa openvino bf16": 25.0}))
    assert found[f"MAR, bf16, batch 1: 1.6 times as fast as {BF16}"] == ("1.50 times", "no")
    assert found[f"MAR, bf16, batch 8: 1.5 times as fast as {BF16}"] == ("1.20 times", "no")
    remembers = "with a backbone that remembers, batch"
    assert found[f"MAR, bf16 {remembers} 1: 4.5 times as fast as {BF16}"] == ("5.00 times", "yes")
    assert found[f"MAR, int8 {remembers} 1: 7 times as fast as {BF16}"] == ("not measured", "no")


def test_everything_together_is_judged_against_the_original_default() -> None:
    short = race(iterations=32, plans={"disa cpu int8 refresh 9:5": 2.0})
    assert judged(short)[DEFAULT] == ("not measured", "no")
    assert judged(short, race(iterations=256, official=240.0))[DEFAULT] == ("120.00 times", "no")
    # Not that of as many iterations as usual.
    usual = race(plans={"disa cpu int8 refresh 9:5": 1.0})
    assert judged(usual, race(iterations=256))[DEFAULT] == ("not measured", "no")


def test_bf16_of_other_families_is_judged() -> None:
    ways = {"disa cpu": 40.0, "disa openvino": 36.0, "disa openvino bf16": 24.0}
    found = judged(race(plans=ways) | {"shapes": "xar_b"})
    assert found["xar_b, bf16: 1.8 times as fast as disa in fp32"] == ("1.50 times", "no")
    assert found[f"xar_b, bf16: faster than {BF16}"] == ("1.25 times", "yes")
    assert found["flowar_s, bf16: 1.8 times as fast as disa in fp32"] == ("not measured", "no")


def test_memory_and_load_are_judged() -> None:
    found = judged(bench())
    memory = [value for name, value in found.items() if name.startswith("peak memory")]
    assert memory == [("1.10 times", "yes")]
    assert [value for name, value in found.items() if name.startswith("load")] == [("1.50 s", "no")]
    assert not any(name.startswith("peak memory") for name in judged(bench("fashion")))


@pytest.mark.parametrize(
    ("contender", "way"),
    [
        ("disa cpu", Way()),
        ("disa openvino bf16", Way("bf16")),
        ("disa cpu int8 refresh 9:5", Way("int8", refresh=True)),
        ("disa cpu refresh 9:5", Way(refresh=True)),
        ("official fp32", None),
        ("official bf16 autocast", None),
    ],
)
def test_the_name_of_a_contender_says_how_it_runs(contender: str, way: Way | None) -> None:
    ways = [
        Way(precision, refresh) for precision in ("", "bf16", "int8") for refresh in (False, True)
    ]
    assert [each for each in ways if each.fits(contender)] == ([way] if way else [])
