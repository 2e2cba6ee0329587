import os
from pathlib import Path

import pytest

from disa.engines.plan.plan import PlanWriter
from disa.errors import DisaError
from disa.exporter.destination import name_in_path, plan_path, refuse_inputs, refuse_other_plan


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mar_base.pth", "mar_base"),
        ("runs/fashion.safetensors", "fashion"),
        ("checkpoint-last.pth", None),
        ("checkpoint-400.pth", None),
        ("pytorch_model.bin", None),
        ("model.safetensors", None),
        ("model.safetensors.index.json", None),
        ("epoch=12-step=3000.ckpt", None),
        ("last.ckpt", None),
        ("ema_0.9999_400000.pt", None),
        ("mp_rank_00_model_states.pt", None),
        ("xar.model.safetensors.index.json", "xar.model"),
    ],
)
def test_names_that_say_something(file: str, name: str | None) -> None:
    assert name_in_path(Path(file)) == name


def test_names_of_folders(tmp_path: Path) -> None:
    for folder, name in (("mar_base", "mar_base"), ("v1.5", "v1.5"), ("checkpoint-400", None)):
        (tmp_path / folder).mkdir()
        assert name_in_path(tmp_path / folder) == name


def test_where_a_plan_goes(tmp_path: Path) -> None:
    assert plan_path(None, lambda: "m") == Path("engines/m.plan")
    assert plan_path("out/x", lambda: "m") == Path("out/x")
    assert plan_path("out/", lambda: "m") == Path("out/m.plan")
    assert plan_path(tmp_path, lambda: "m") == tmp_path / "m.plan"


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_text("x")
    (tmp_path / "link").symlink_to("m.pth")
    os.link(tmp_path / "m.pth", tmp_path / "hard")
    for output in ("m.pth", "link", "hard"):
        with pytest.raises(DisaError, match=f"{output} is read for this plan"):
            refuse_inputs(tmp_path / output, [None, tmp_path / "v.pth", tmp_path / "m.pth"])
    refuse_inputs(tmp_path / "new.plan", [tmp_path / "m.pth"])


def test_a_plan_of_another_checkpoint_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.plan"
    content = {
        "family": "mar", "name": "m", "precision": "fp32", "model": {}, "tokens": {},
        "defaults": {}, "source": {"file": "checkpoint-last.pth", "sha256": "12"},
    }  # fmt: skip
    with PlanWriter(path, content):
        pass
    refuse_other_plan(path, lambda: "12", overwrite=False)
    refuse_other_plan(path, lambda: "34", overwrite=True)
    refuse_other_plan(tmp_path / "no.plan", lambda: "34", overwrite=False)
    with pytest.raises(DisaError, match=r"made from another file \(checkpoint-last.pth\)"):
        refuse_other_plan(path, lambda: "34", overwrite=False)
    path.write_text("notes")
    with pytest.raises(DisaError, match="not a readable plan"):
        refuse_other_plan(path, lambda: "12", overwrite=False)
