import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demo import evaluate, kept_batches
from demo.classifier import Classifier
from demo.quality import Quality, spread_classes
from disa.errors import DisaError
from disa.runtime.stats import Stats

Write = Callable[..., None]


class FakePipeline:
    """Generates flat images whose grey value is the number of the image."""

    engine = "none"
    family = SimpleNamespace(classes=10)
    plan = SimpleNamespace(manifest=SimpleNamespace(defaults={"cfg": 2.0}))

    def __init__(self, slow: str) -> None:
        self.slow = slow
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, class_labels: list[int], **options: Any) -> SimpleNamespace:
        self.calls.append((options.get("strategy"), options.get("first_image")))
        stats = Stats(images=len(class_labels), head_calls=10, head_rows=5 * len(class_labels))
        slow = options.get("strategy") == self.slow
        stats.seconds = {"head": 1.0, "backbone": 0.5, "total": 4.0 if slow else 2.0}
        number = options.get("first_image", 0) + np.arange(len(class_labels))
        images = np.broadcast_to(number[:, None, None, None], (len(class_labels), 32, 32, 1))
        return SimpleNamespace(images=images.astype(np.uint8), stats=stats)


def test_schedules_alternate_and_generate_the_same_images() -> None:
    pipeline = FakePipeline("fixed")
    runs = [evaluate.ScheduleRun(Path("a.plan"), text) for text in ("fixed 50", "linear 50:5")]
    pipelines: Any = {Path("a.plan"): pipeline}
    evaluate.generate(pipelines, runs, spread_classes(25), 10, {})
    assert pipeline.calls == [
        ("fixed", 0),
        ("linear", 0),
        ("linear", 10),
        ("fixed", 10),
        ("fixed", 20),
        ("linear", 20),
    ]
    for run in runs:
        assert np.concatenate(run.images)[:, 0, 0].tolist() == list(range(25))
        assert run.stats.images == 25


def test_a_schedule_without_steps_is_refused() -> None:
    with pytest.raises(DisaError, match="linear 50:5"):
        _ = evaluate.ScheduleRun(Path("a.plan"), "linear").options


def test_the_result_has_a_table_numbers_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_split: Write
) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        write_split(random.integers(0, 256, (80, 28, 28)), np.arange(80) % 10, split)
    monkeypatch.setattr(evaluate, "load_classifier", lambda: Classifier().eval())
    monkeypatch.setattr(kept_batches, "identify", lambda plan: "a plan")
    monkeypatch.setattr(
        evaluate.Pipeline, "from_plan", lambda *_, **__: FakePipeline("fixed"), raising=True
    )
    output = tmp_path / "results" / "demo"
    old = output.with_suffix(".batches") / "old.npz"
    old.parent.mkdir(parents=True)
    old.touch()
    evaluate.evaluate(
        [evaluate.ScheduleRun(Path("a.plan"), each) for each in ("fixed 50", "linear 50:5")],
        num=40,
        batch_size=20,
        options={"guidance_scale": None, "seed": 0},
        engine="auto",
        threads=None,
        data=tmp_path,
        output=output,
    )
    assert not old.parent.exists()
    lines = output.with_suffix(".md").read_text().splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| fixed 50 | 10 | 2.0 | 8.0 | 1.00x |")
    assert lines[3].startswith("| linear 50:5 | 10 | 2.0 | 4.0 | 2.00x |")
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["rows"][1]["speedup"] == 2
    assert content["rows"][1]["backbone_seconds"] == 1
    assert 0 <= content["real"]["accuracy"] <= 1
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size == (120 + 20 * 64, 2 * 64)


def test_schedules_as_options() -> None:
    def options(schedule: str) -> dict[str, object]:
        return evaluate.ScheduleRun(Path("a.plan"), schedule).options

    assert options("linear 50:5") == {"strategy": "linear", "steps": "50:5"}
    assert options("fitted a.json") == {"schedule": "a.json"}
    assert options("adaptive 50:5 0.1") == {
        "strategy": "adaptive",
        "steps": "50:5",
        "tolerance": 0.1,
    }


def test_full_passes_of_a_cached_backbone() -> None:
    run = evaluate.ScheduleRun(Path("a.plan"), "linear 50:5", "4:4")
    assert run.options == {"strategy": "linear", "steps": "50:5", "refresh": "4:4"}
    run.stats.seconds = {"head": 1.0, "backbone": 0.5, "total": 2.0}
    run.images = [np.zeros((2, 32, 32), np.uint8)]
    run.stats.images = 2
    score = Quality(0.5, 1.0)
    text = evaluate.table([evaluate.row_of(run, score, None)], score, False)
    assert "| linear 50:5, refresh 4:4 |" in text


def test_a_record_has_no_path_of_the_machine() -> None:
    assert (
        evaluate.without_folder("fitted /a/b/c.json order=random") == "fitted c.json order=random"
    )
    assert evaluate.without_folder("linear 50:5") == "linear 50:5"
    for path in (Path(evaluate.__file__).parent / "results").rglob("*.json"):
        assert '"fitted /' not in path.read_text(), path
