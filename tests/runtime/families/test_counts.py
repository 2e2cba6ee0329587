from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from disa.errors import DisaError
from disa.exporter.families import flowar, harmon, mar, xar
from disa.exporter.random_weights import official_config
from disa.runtime.families import registry
from disa.runtime.families.registry import open_family

MODULES: dict[str, Any] = {module.FAMILY: module for module in (mar, flowar, xar, harmon)}
NEEDED = {
    "mar": ("model.class_num", "model.encoder_embed_dim", "model.buffer_size", "tokens.count"),
    "flowar": ("model.class_num", "tokens.scales", "tokens.channels", "tokens.count"),
    "xar": ("tokens.clusters", "tokens.count", "tokens.channels", "tokens.dimensions.rows"),
    "harmon": (
        *("tokens.stride", "tokens.native_grid", "tokens.count", "tokens.channels"),
        *("model.llm.vocab_size", "model.llm.hidden_size"),
    ),
}
SMALLEST = {"mar": "mar_b", "flowar": "flowar_s", "xar": "xar_b", "harmon": "harmon_0.5b"}
DAMAGE = (None, 0, -1, 1.5, "16", True, 1 << 40, [], [0], [4, "x"], {"a": 1})


@pytest.fixture(autouse=True)
def without_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plans here have no graphs to compare the counts with."""
    monkeypatch.setattr(registry, "check_signature", lambda plan, signature: None)


def plan_of(family: str) -> Any:
    content = MODULES[family].manifest(official_config(SMALLEST[family]))
    manifest = SimpleNamespace(**content, class_names=None, graphs={})
    return SimpleNamespace(path=Path("some.plan"), manifest=manifest)


@pytest.mark.parametrize("family", SMALLEST)
def test_a_whole_manifest_needs_only_graphs(family: str) -> None:
    with pytest.raises(DisaError, match=r"some\.plan has no \w+ graph"):
        open_family(plan_of(family), {})


@pytest.mark.parametrize(
    ("family", "where"), [(f, w) for f, names in NEEDED.items() for w in names]
)
def test_a_damaged_number_is_named(family: str, where: str) -> None:
    section, *keys = where.split(".")
    for damage in DAMAGE:
        plan = plan_of(family)
        *outer, last = keys
        inside = getattr(plan.manifest, section)
        for key in outer:
            inside = inside[key]
        inside[last] = damage
        with pytest.raises(DisaError) as caught:
            open_family(plan, MagicMock())
        assert f"some.plan: its manifest has no usable {'.'.join(keys)} in {section}" in str(
            caught.value
        )


def test_a_section_that_is_no_object_is_damage() -> None:
    plan = plan_of("harmon")
    plan.manifest.model["llm"] = [1]
    with pytest.raises(DisaError, match=r"no usable llm\.vocab_size"):
        open_family(plan, {})
