import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import growth
from benchmarks.growth import grow
from disa.exporter.families.configs.mar import MARConfig

AXES = {"batch_size": (1, 3), "steps": (2, 4), "tokens": (16, 36)}


def test_work_follows_what_is_varied(
    tmp_path: Path, golden_plan: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def write(config: MARConfig, precision: str, path: Path) -> Path:
        sizes.append(config.img_size)
        return Path(shutil.copy(golden_plan("mar"), path))

    monkeypatch.setattr(growth, "write_plan", write)
    monkeypatch.setattr(growth, "POINT", {"batch_size": 2, "iterations": 3, "steps": 4})
    record = grow(tmp_path, AXES, repeat=1)
    work = {
        axis: {entry["value"]: entry["flops"] for entry in entries}
        for axis, entries in record["axes"].items()
    }
    assert sizes == [128, 64, 96]
    assert work["batch_size"][3] == pytest.approx(3 * work["batch_size"][1])
    assert work["steps"][2] < work["steps"][4] < 2 * work["steps"][2]
    assert work["tokens"][16] == pytest.approx(work["steps"][4])
    assert all(entry["seconds"] > 0 for entries in record["axes"].values() for entry in entries)
