from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demo import kept_batches
from demo.kept_batches import Batch, KeptBatches
from disa.runtime.stats import Stats


class Generation:
    """Generates a batch, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Batch:
        self.count += 1
        images = np.full((2, 32, 32), self.count, np.uint8)
        return images, Stats({"head": 0.5}, 2, 3, 4), 1.5


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(kept_batches, "identify", lambda plan: plan)
    return SimpleNamespace(plan="a", engine="cpu")


def test_a_batch_is_generated_once(tmp_path: Path, pipe: Any) -> None:
    generation = Generation()
    first = KeptBatches(tmp_path / "new").get(pipe, {"first_image": 0}, generation)
    images, stats, seconds = KeptBatches(tmp_path / "new").get(pipe, {"first_image": 0}, generation)
    assert generation.count == 1
    assert (images == first[0]).all()
    assert stats == first[1]
    assert seconds == 1.5


def test_another_batch_is_not_taken_for_it(tmp_path: Path, pipe: Any) -> None:
    generation, kept = Generation(), KeptBatches(tmp_path)
    schedule = tmp_path / "fitted.json"
    schedule.write_text("1")
    for plan, engine, arguments in (
        ("a", "cpu", {"first_image": 0}),
        ("b", "cpu", {"first_image": 0}),
        ("a", "openvino", {"first_image": 0}),
        ("a", "cpu", {"first_image": 2}),
        ("a", "cpu", {"first_image": 0, "schedule": str(schedule)}),
    ):
        kept.get(SimpleNamespace(plan=plan, engine=engine), arguments, generation)  # type: ignore[arg-type]
    assert generation.count == 5
    schedule.write_text("2")
    kept.get(pipe, {"first_image": 0, "schedule": str(schedule)}, generation)
    assert generation.count == 6


def test_an_interrupted_batch_is_not_kept(tmp_path: Path, pipe: Any) -> None:
    def interrupt() -> Batch:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        KeptBatches(tmp_path).get(pipe, {}, interrupt)
    assert not list(tmp_path.iterdir())
