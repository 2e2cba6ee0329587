import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

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


def test_stages_are_measured_one_by_one(
    pixel_plan: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluated: list[list[str]] = []

    def evaluate(runs: list[ScheduleRun], output: Path, **settings: Any) -> None:
        evaluated.append([run.schedule for run in runs])
        output.with_suffix(".json").write_text(json.dumps({"rows": len(runs)}))

    def export(family: str, folder: Path, precision: str = "fp32") -> Path:
        return shutil.copy(pixel_plan, folder / f"{precision}.plan")

    monkeypatch.setattr(observe, "export_plan", export)
    monkeypatch.setattr(observe, "export_precisions", lambda *given: ([pixel_plan], {"fp8": "no"}))
    monkeypatch.setattr(observe, "measure_signals", lambda *given: {"steps": [3, 2]})
    monkeypatch.setattr(observe, "evaluate", evaluate)

    def run(*stages: str) -> Result:
        options = [part for stage in stages for part in ("--stage", stage)]
        places = ["--work", str(tmp_path / "work"), "-o", str(tmp_path)]
        return CliRunner().invoke(observe.main, ["mar", *options, *places])

    early = run("precisions")
    assert early.exit_code == 1
    assert "precisions of mar need its signals: measure these first" in early.output
    assert run("signals", "schedules").exit_code == 0
    assert json.loads((tmp_path / "work" / "mar" / "fitted.json").read_text()) == {"steps": [3, 2]}
    assert run("precisions").exit_code == 0
    assert json.loads((tmp_path / "mar.json").read_text()) == {
        "signals": {"steps": [3, 2]},
        "schedules": {"rows": 8},
        "precisions": {"rows": 1},
        "refused": {"fp8": "no"},
    }
    assert len(evaluated) == 2
    assert evaluated[1] == [evaluated[0][1]], "the precisions run the linear schedule"


def test_every_family_has_its_weights() -> None:
    for family, options in observe.EXPORTS.items():
        assert (observe.WEIGHTS / f"fashion_{family}.pth").is_file()
        assert all(path.is_file() for path in options.values() if isinstance(path, Path))
