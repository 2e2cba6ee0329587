import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import official_sizes
from benchmarks.official_sizes import main
from benchmarks.process import ProcessResult
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


def in_this_process(function: Callable[..., Any], *arguments: Any) -> ProcessResult[Any]:
    return ProcessResult(function(*arguments), 1.5, 1.25, 3 << 30, None)


def test_sizes_are_exported_and_generated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(official_sizes, "run_in_process", in_this_process)
    monkeypatch.setattr(official_sizes, "official_config", lambda size: TINY)
    output, scratch = tmp_path / "sizes.json", tmp_path / "scratch"
    scratch.mkdir()
    options = ["--only", "xar_b", "-o", str(output), "--scratch", str(scratch)]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert "xar_b" in result.output
    assert not list(scratch.iterdir())
    (entry,) = json.loads(output.read_text())["entries"].values()
    assert entry["latents"] == [1, 16, 16, 16]
    assert entry["difference"] < 1e-4
    assert entry["head_calls"] == 4 + 3 + 2 + 2
    assert entry["plan_bytes"] > 4 * 0.5 * entry["weights"]
    assert (entry["export_seconds"], entry["export_cpu_seconds"]) == (1.5, 1.25)
    assert entry["export_peak_bytes"] == 3 << 30
    assert entry["load_seconds"] > 0 < entry["seconds"]["head"]


def test_a_size_that_does_not_exist() -> None:
    result = CliRunner().invoke(main, ["--only", "mar_x"])
    assert result.exit_code == 1
    assert "there is no mar_x: choose from mar_b" in result.output
