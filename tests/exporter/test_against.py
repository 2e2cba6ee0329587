import json
from pathlib import Path
from typing import Any

import pytest

from disa.engines.plan.writer import PlanWriter
from disa.errors import DisaError
from disa.exporter import against
from disa.exporter.against import compare_with_checkpoint

from ..conftest import GOLDEN

CONTENT = {
    "family": "mar",
    "name": "m",
    "precision": "fp32",
    "model": {"vae_embed_dim": 16},
    "tokens": {},
    "defaults": {},
}


@pytest.mark.parametrize("with_config", [False, True])
def test_the_model_is_opened_as_in_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_config: bool
) -> None:
    """The VAE determines sizes that neither the tensors nor the configuration show."""
    seen: list[Any] = []

    def stop(_checkpoint: Path, sizes: Any, _weights: Any, vae: Any, _recorded: Any) -> None:
        seen.extend((sizes, vae.geometry))
        raise DisaError("enough")

    monkeypatch.setattr(against, "open_model", stop)
    with PlanWriter(tmp_path / "m.plan", CONTENT):
        pass
    heads = {"encoder_num_heads": 2}
    (tmp_path / "heads.json").write_text(json.dumps(heads))
    config = tmp_path / "heads.json" if with_config else None
    vae = GOLDEN / "vae" / "kl16_tiny.ckpt"
    with pytest.raises(DisaError, match="enough"):
        compare_with_checkpoint(tmp_path / "m.plan", tmp_path / "m.pth", vae, config)
    sizes = heads if with_config else CONTENT["model"]
    assert seen == [sizes, {"vae_embed_dim": 16, "vae_stride": 8}]
