import pytest
import torch

from benchmarks import savings
from benchmarks.savings import head_savings, layer_savings, milliseconds, saving_rows


def test_savings_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "TRIES", 1)
    with torch.no_grad():
        for what, before, after, of in [*layer_savings(), *head_savings()]:
            assert what
            assert of
            assert milliseconds(before) > 0
            assert milliseconds(after) > 0


def test_rows() -> None:
    entry = {"saving": "less", "before": 10.0, "after": 2.5, "of": "a step"}
    assert saving_rows({"entries": [entry]}) == [["less", "10", "2.5", "a step"]]
