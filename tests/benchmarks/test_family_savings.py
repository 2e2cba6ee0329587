import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import family_savings
from benchmarks.family_savings import hoisted_rows, main
from disa.exporter.families import harmon
from disa.exporter.families.configs.flowar import FlowARConfig
from disa.exporter.families.configs.mar import MARConfig
from disa.exporter.families.configs.xar import XARConfig
from disa.exporter.layers import qwen2

STACKS = {
    "encoder_embed_dim": 32,
    "encoder_depth": 2,
    "encoder_num_heads": 2,
    "decoder_embed_dim": 32,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
    "vae_embed_dim": 16,
    "class_num": 1000,
}
TINY: dict[str, Any] = {
    "flowar_l": FlowARConfig(**STACKS, diffloss_d=2, diffloss_w=64, cross=True),
    "xar_b": XARConfig(**STACKS),
    "harmon_0.5b": harmon.Config(
        qwen2.Config(64, 32, 48, 2, 2, 1),
        MARConfig(64, 16, 1, 16, 1000, 4, 32, 1, 2, 32, 1, 2, 1, 32),
    ),
}


def test_everything_hoisted_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(family_savings, "TRIES", 1)
    monkeypatch.setattr(family_savings, "official_config", TINY.__getitem__)
    output = tmp_path / "savings.json"
    result = CliRunner().invoke(main, ["-o", str(output)])
    assert result.exit_code == 0, result.output
    entries = json.loads(output.read_text())["entries"]
    assert [len(entry["hoisted"]) for entry in entries.values()] == [3, 2, 2]
    for entry in entries.values():
        for found in entry["hoisted"]:
            assert found["each"] > 0 < found["once"]
    assert len(hoisted_rows(entries)) == 7


def test_the_share_is_of_the_loop_with_the_work_inside() -> None:
    found = {"what": "keys", "loop": "10 steps", "turns": 10, "each": 1.0, "once": 2.0, "turn": 3.0}
    (cells,) = hoisted_rows({"some": {"hoisted": [found]}})
    assert cells == ["some", "keys", "10 steps", "10", "2", "3", "20.0%"]
    (cells,) = hoisted_rows({"some": {"hoisted": [{**found, "turn": None}]}})
    assert cells[-2:] == ["-", "-"]
