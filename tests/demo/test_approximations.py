from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from demo import approximations
from demo.approximations import Variant
from disa.runtime.stats import Stats


class FakePipeline:
    """Generates flat images whose grey value is the image's number."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, class_labels: list[int], **options: Any) -> SimpleNamespace:
        self.calls.append(options)
        number = options["first_image"] + np.arange(len(class_labels))
        images = np.broadcast_to(number[:, None, None, None], (len(class_labels), 32, 32, 1))
        stats = Stats(images=len(class_labels), head_rows=5 * len(class_labels))
        return SimpleNamespace(images=images.astype(np.uint8), stats=stats)


def test_every_variant_generates_every_image_with_its_own_options() -> None:
    pipelines: Any = [FakePipeline(), FakePipeline()]
    compared = [Variant("exact"), Variant("refresh", options={"refresh": "4:4"})]
    labels = np.arange(5) % 3
    outcomes = approximations.generate(pipelines, compared, labels, 2)
    for outcome in outcomes:
        assert np.concatenate(outcome.images)[:, 0, 0].tolist() == list(range(5))
        assert outcome.stats.images == 5
    assert [call["first_image"] for call in pipelines[0].calls] == [0, 2, 4]
    assert all("refresh" not in call for call in pipelines[0].calls)
    assert all(call["refresh"] == "4:4" for call in pipelines[1].calls)
    assert {call["seed"] for pipe in pipelines for call in pipe.calls} == {0}


def test_without_a_schedule_nothing_is_compared_that_needs_one() -> None:
    without, all_of_them = approximations.variants(None), approximations.variants(Path("a.json"))
    assert all_of_them[: len(without)] == without
    assert [v.options["schedule"] for v in all_of_them[len(without) :]] == ["a.json", "a.json"]


def test_the_exact_loop_is_compared_with_what_is_not() -> None:
    exact = {variant.name for variant in approximations.variants(None) if variant.exact}
    assert "exact" in exact
    assert not exact & {"bf16", "int8"}


def test_a_record_names_the_file_of_a_schedule_and_not_where_it_lies() -> None:
    variant = Variant("all", options={"refresh": "4:4", "schedule": "/somewhere/else/a.json"})
    assert approximations.recorded_options(variant) == {"refresh": "4:4", "schedule": "a.json"}
