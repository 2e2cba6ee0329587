from pathlib import Path

import pytest

from demo import observe
from demo.evaluate import ScheduleRun
from disa.calibration.quantization.qdq import Format
from disa.calibration.quantization.quantize import QuantizeOptions
from disa.errors import DisaError


def test_schedules_are_what_the_evaluation_reads() -> None:
    schedules = observe.schedules_of("mar", "50:6", Path("some/fitted.json"))
    options = [ScheduleRun(Path("a.plan"), schedule).options for schedule in schedules]
    assert {"strategy": "constant", "steps": "28"} in options
    assert {"schedule": "some/fitted.json"} in options
    assert {"strategy": "adaptive", "steps": "50:6", "tolerance": 0.05} in options
    assert "adaptive 25:15 0.2" in observe.schedules_of("flowar", "25:15", Path("fitted.json"))


def test_a_refused_precision_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(plan: Path, path: Path, options: QuantizeOptions) -> None:
        assert plan == tmp_path / "fp32.plan"
        assert "a bag" in options.prompts
        if options.form is Format.FP8:
            raise DisaError("it loses too much")

    monkeypatch.setattr(observe, "export", lambda *arguments, **options: None)
    monkeypatch.setattr(observe, "quantize", refuse)
    plans, refused = observe.export_precisions("harmon", tmp_path)
    assert [path.name for path in plans] == ["fp16.plan", "bf16.plan", "int8.plan"]
    assert refused == {"fp8": "it loses too much"}


def test_every_family_has_its_weights() -> None:
    for family, options in observe.EXPORTS.items():
        assert (observe.WEIGHTS / f"fashion_{family}.pth").is_file()
        assert all(path.is_file() for path in options.values() if isinstance(path, Path))
