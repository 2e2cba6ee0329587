from typing import Any

from benchmarks.official_loop import BF16, FP32
from benchmarks.targets import targets

from .made_up import bench, race


def test_targets_are_judged() -> None:
    def judged(*records: dict[str, Any]) -> dict[str, tuple[str, str]]:
        races = [record for record in records if "kind" in record]
        benches = [record for record in records if "variants" in record]
        return {name: (measured, met) for name, measured, met in targets(races, benches)}

    found = judged(race(), race(batch=8, official=12.0), bench())
    assert found[f"6 times the speed of {FP32}, batch 1"] == ("10.00 times", "yes")
    assert found[f"6 times the speed of {FP32}, batch 8"] == ("2.00 times", "no")
    assert found[f"2 times the speed of {BF16}, batch 1"] == ("5.00 times", "yes")
    assert found[f"10 times the speed of {FP32}, batch 1, with int8"] == ("20.00 times", "yes")
    assert found[f"3 times the speed of {BF16}, batch 8, with int8"] == ("10.00 times", "yes")
    default = "30 times the original default (256 iterations, 100 steps)"
    assert found[default] == ("not measured", "no")
    assert judged(race(), race(iterations=256, official=240.0))[default] == ("80.00 times", "yes")
    memory = [value for name, value in found.items() if name.startswith("peak memory")]
    assert memory == [("1.10 times", "yes")]
    assert [value for name, value in found.items() if name.startswith("load")] == [("1.50 s", "no")]
    assert not any(name.startswith("peak memory") for name in judged(bench("fashion")))
