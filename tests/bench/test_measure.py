from typing import Any

import pytest

from disa.bench.calls import Call, Work
from disa.bench.measure import floor, summarise
from disa.bench.worker import BatchCost


def cost(total: float, **parts: float) -> BatchCost:
    return BatchCost({**parts, "noise": 0.1, "total": total}, 1.0, 7, 14, 1 << 20)


def test_a_record_says_what_was_measured(record: dict[str, Any]) -> None:
    measured = [
        (entry["batch_size"], entry["options"]["steps"], entry["head_calls"])
        for entry in record["variants"]
    ]
    assert measured == [(1, "3:2", 7), (1, "2:2", 6), (2, "3:2", 7), (2, "2:2", 6)]
    assert record["machine"].keys() >= {"processor", "cores", "load", "load_after"}
    assert record["versions"].keys() >= {"python", "disa", "numpy", "onnxruntime"}
    engine = record["engines"]["cpu"]
    assert "CPUExecutionProvider" in engine["runs"]
    assert 0 < engine["load_seconds"] < engine["first_image_seconds"]


def test_the_parts_make_up_the_whole(record: dict[str, Any]) -> None:
    for entry in record["variants"]:
        assert len(entry["seconds_an_image"]["all"]) == 2
        assert entry["parts"].keys() == {"backbone", "head", "decoder", "host"}
        parts = sum(entry["parts"].values())
        assert parts == pytest.approx(entry["seconds_an_image"]["median"], rel=0.2)
        assert entry["images_a_second"] == pytest.approx(1 / entry["seconds_an_image"]["median"])
        assert entry["peak_memory_bytes"] > 10 << 20
        assert 0 < entry["floor"]["seconds_an_image"] < entry["seconds_an_image"]["median"]
        assert 0 < entry["near_floor"] < 1


def test_costs_are_those_of_an_image() -> None:
    costs = [
        cost(10, backbone=4, head=2),
        cost(2, backbone=1, head=0.5),
        cost(4, head=2, backbone=1),
    ]
    result = summarise(costs, costs[1:], batch=2)
    assert result["seconds_an_image"]["all"] == [1.0, 2.0]
    assert result["seconds_an_image"]["median"] == 1.5
    assert result["seconds_an_image"]["p90"] == pytest.approx(1.9)
    assert result["parts"] == {"backbone": 0.5, "head": 0.625, "host": 0.375}
    assert result["images_a_second"] == pytest.approx(1 / 1.5)
    assert result["cpu_seconds_an_image"] == 0.5


def test_the_floor_is_the_longer_of_arithmetic_and_memory() -> None:
    work = Work()
    work.add("backbone", Call(flops=100, weight_bytes=1))
    work.add("head", Call(flops=1, weight_bytes=30), times=2)
    least = floor(work, rate=10, bandwidth=3, batch=2)
    assert least is not None
    assert least["parts"] == {"backbone": 5, "head": 10}
    assert least["seconds_an_image"] == 15
    assert (least["flops_an_image"], least["weight_bytes_an_image"]) == (51, 30.5)
    assert floor(None, 10, 3, 2) is None
    assert floor(work, None, 3, 2) is None
