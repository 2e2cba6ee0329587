import torch

from benchmarks.savings import head_savings, layer_savings, saving_rows
from benchmarks.timing import CLOCKS, least


def test_savings_can_be_timed() -> None:
    with torch.no_grad():
        for what, before, after, of in [*layer_savings(), *head_savings()]:
            assert what
            assert of
            assert least(before, CLOCKS["cpu"], 1) > 0
            assert least(after, CLOCKS["cpu"], 1) > 0


def test_rows() -> None:
    entry = {"saving": "less", "before": 10.0, "after": 2.5, "of": "a step"}
    assert saving_rows({"entries": [entry]}) == [["less", "10", "2.5", "a step"]]
