import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import official_sizes
from benchmarks.official_sizes import main
from disa.errors import DisaError
from disa.exporter.families.configs.xar import XARConfig

TINY = XARConfig(
    encoder_embed_dim=16,
    encoder_depth=1,
    encoder_num_heads=2,
    decoder_embed_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    vae_embed_dim=16,
    class_num=1000,
)


class ThisProcess(ThreadPoolExecutor):
    """Where the patch below holds."""

    def __init__(self, workers: int, mp_context: Any) -> None:
        super().__init__(workers)


def test_sizes_are_exported_and_generated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(official_sizes, "ProcessPoolExecutor", ThisProcess)
    monkeypatch.setattr(official_sizes, "official_config", lambda size: TINY)
    output, scratch = tmp_path / "sizes.json", tmp_path / "scratch"
    scratch.mkdir()
    output.write_text(json.dumps({"kind": "official_sizes", "entries": {"mar_h": {"old": 1}}}))
    options = ["--only", "xar_b", "-o", str(output), "--scratch", str(scratch)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert "xar_b" in result.output
    assert not list(scratch.iterdir())
    entries = json.loads(output.read_text())["entries"]
    assert list(entries) == ["mar_h", "xar_b"]
    entry = entries["xar_b"]
    assert entry["difference"] < 1e-4
    assert entry["head_calls"] == 4 + 3 + 2 + 2
    assert entry["plan_bytes"] > 4 * 0.5 * entry["weights"]
    assert min(entry["export_seconds"], entry["export_cpu_seconds"]) > 0
    assert min(entry["export_peak_bytes"], entry["run_peak_bytes"]) > 10 << 20
    assert entry["load_seconds"] > 0 < entry["seconds"]["head"]


def test_a_killed_export_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(official_sizes, "export_size", die)
    with pytest.raises(DisaError, match="the export of xar_b was killed"):
        official_sizes.measure("xar_b", tmp_path, "fp32", "cpu", None)


def die(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a record of official_sizes"),
        ('{"kind": "official_sizes", "entries": 3}', "not a record of official_sizes"),
        ('{"kind": "costs", "entries": {}}', "a record of costs, not of official_sizes"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(DisaError, match=message):
        official_sizes.read_entries(path)
