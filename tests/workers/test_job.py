"""What is sent to workers."""

import pickle
from pathlib import Path

import pytest

from disa.errors import DisaError
from disa.runtime.sampling.schedule import FittedSchedule
from disa.workers.job import Job, portable


def test_a_job_does_not_depend_on_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers of a cluster were started elsewhere, or on another machine."""
    monkeypatch.chdir(tmp_path)
    content = '{"format": "disa-schedule", "version": 1, "steps": [9, 7, 3]}'
    Path("steps.json").write_text(content)
    options = {"schedule": Path("steps.json"), "temperature": 0.9, "order": None}
    job = portable(Job("a.plan", "cpu", 2, options, 4))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sent = pickle.loads(pickle.dumps(job))
    expected = {"schedule": FittedSchedule((9, 7, 3)), "temperature": 0.9, "order": None}
    assert sent == Job(str(tmp_path / "a.plan"), "cpu", 2, expected, 4)
    assert portable(Job("hf://org/plans@v1/a.plan")).plan == "hf://org/plans@v1/a.plan"
    with pytest.raises(DisaError, match=r"steps\.json: it cannot be read"):
        portable(Job("a.plan", options=options))
