import json
from pathlib import Path
from typing import Any

import pytest

from disa.runtime.outputs.record import RunRecord, differing_options
from disa.runtime.outputs.store import LocalStore
from disa.runtime.stats import Stats


def load(folder: Path, request: dict[str, Any]) -> RunRecord | None:
    content = {"request": request, "conditions": ["a dog"], "stats": Stats().to_json()}
    (folder / "run.json").write_text(json.dumps(content))
    return RunRecord.load(LocalStore(folder))


@pytest.mark.parametrize(
    ("grid", "size"), [("(32, 32)", "512"), ("(24, 40)", "640x384"), ("(4, 4)", "64")]
)
def test_options_of_the_first_version(grid: str, size: str, tmp_path: Path) -> None:
    record = load(tmp_path, {"iterations": 64, "guidance_scale": 3.0, "grid": grid, "seed": 2})
    assert record
    expected = {"num_iterations": 64, "guidance_scale": 3.0, "size": size, "seed": 2}
    assert record.request == expected
    assert record.selection.seeds == 2


def test_a_missing_option_has_its_default() -> None:
    before = {"plan_sha256": "f" * 64, "guidance_scale": 3.0}
    after = {**before, "order": "random", "refresh": "None"}
    assert differing_options(after, before) == differing_options(after, after) == []
    for name, value in (("order", "checkerboard"), ("refresh", "9:5")):
        changed = {**after, name: value}
        assert differing_options(changed, before) == [name]
        assert differing_options(after, changed) == [name]
    assert differing_options(before, {**before, "plan_sha256": "0" * 64}) == ["plan_sha256"]
    assert differing_options({**before, "seed": 1}, before) == ["seed"]
