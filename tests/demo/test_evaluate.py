import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from demo import evaluate, fashion_mnist
from demo.classifier import FEATURES, Classifier, judge
from disa.errors import DisaError
from disa.runtime.stats import Stats

Write = Callable[..., None]


class FakePipeline:
    """Draws flat images whose grey value tells the image's number."""

    engine = "none"
    plan = SimpleNamespace(manifest=SimpleNamespace(defaults={"cfg": 2.0}))

    def __init__(self, slow: str) -> None:
        self.slow = slow
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, labels: list[int], **options: Any) -> SimpleNamespace:
        self.calls.append((options.get("strategy"), options.get("first_image")))
        stats = Stats(images=len(labels), head_calls=10, head_rows=5 * len(labels))
        stats.seconds = {"head": 1.0, "total": 4.0 if options.get("strategy") == self.slow else 2.0}
        number = options.get("first_image", 0) + np.arange(len(labels))
        images = np.broadcast_to(number[:, None, None, None], (len(labels), 32, 32, 1))
        return SimpleNamespace(images=images.astype(np.uint8), stats=stats)


def test_schedules_take_turns_and_draw_the_same_images() -> None:
    pipeline = FakePipeline("fixed")
    entries = [evaluate.Entry(Path("a.plan"), text) for text in ("fixed 50", "linear 50:5")]
    pipelines: Any = {Path("a.plan"): pipeline}
    evaluate.draw(pipelines, entries, evaluate.spread_classes(25), 10, {})
    assert pipeline.calls == [
        ("fixed", 0),
        ("linear", 0),
        ("linear", 10),
        ("fixed", 10),
        ("fixed", 20),
        ("linear", 20),
    ]
    for entry in entries:
        assert np.concatenate(entry.images)[:, 0, 0].tolist() == list(range(25))
        assert entry.stats.images == 25


def test_a_schedule_without_steps_is_refused() -> None:
    with pytest.raises(DisaError, match="linear 50:5"):
        _ = evaluate.Entry(Path("a.plan"), "linear").options


def test_classes_come_in_turn() -> None:
    assert evaluate.spread_classes(12).tolist() == [*range(10), 0, 1]


def test_judging_gives_features_and_classes() -> None:
    torch.manual_seed(0)
    model = Classifier().eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 32, 32)).astype(np.uint8)
    features, classes = judge(model, images, batch_size=3)
    assert features.shape == (7, FEATURES)
    pixels = torch.from_numpy(fashion_mnist.to_model(images)).unsqueeze(1)
    np.testing.assert_array_equal(classes, model(pixels).argmax(1).numpy())


def test_the_report_has_table_numbers_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_split: Write
) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        write_split(random.integers(0, 256, (80, 28, 28)), np.arange(80) % 10, split)
    monkeypatch.setattr(evaluate, "load_classifier", lambda: Classifier().eval())
    monkeypatch.setattr(
        evaluate.Pipeline, "from_plan", lambda *_, **__: FakePipeline("fixed"), raising=True
    )
    output = tmp_path / "results" / "demo"
    evaluate.report(
        [Path("a.plan")],
        ["fixed 50", "linear 50:5"],
        num=40,
        batch_size=20,
        options={"guidance_scale": None, "seed": 0},
        engine="auto",
        threads=None,
        data=tmp_path,
        output=output,
    )
    lines = output.with_suffix(".md").read_text().splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| fixed 50 | 10 | 2.0 | 8.0 | 1.00x |")
    assert lines[3].startswith("| linear 50:5 | 10 | 2.0 | 4.0 | 2.00x |")
    content = json.loads(output.with_suffix(".json").read_text())
    assert content["rows"][1]["speedup"] == 2
    assert 0 <= content["real"]["accuracy"] <= 1
    with Image.open(output.with_suffix(".png")) as picture:
        assert picture.size == (120 + 20 * 64, 2 * 64)


def test_schedules_as_options() -> None:
    def options(schedule: str) -> dict[str, object]:
        return evaluate.Entry(Path("a.plan"), schedule).options

    assert options("linear 50:5") == {"strategy": "linear", "steps": "50:5"}
    assert options("fitted a.json") == {"schedule": "a.json"}
    assert options("adaptive 50:5 0.1") == {
        "strategy": "adaptive",
        "steps": "50:5",
        "tolerance": 0.1,
    }
