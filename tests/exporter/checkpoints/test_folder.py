import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import open_checkpoint
from disa.exporter.checkpoints.folder import WEIGHTS, weights_in_folder

STATE = {"a.weight": torch.arange(6.0), "b.weight": torch.ones(2)}


def write(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


def check(folder: Path) -> None:
    state = open_checkpoint(folder).state
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if not name.endswith(".json")])
def test_a_folder_of_a_known_trainer(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, STATE)
    (tmp_path / "optimizer.bin").write_bytes(b"x")
    check(tmp_path)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards(tmp_path: Path, suffix: str) -> None:
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = {key: f"{stem}-0000{n}-of-00002{suffix}" for n, key in enumerate(STATE, 1)}
    for key, name in names.items():
        write(tmp_path / name, {key: STATE[key]})
    (tmp_path / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": names}))
    check(tmp_path)
    assert len(open_checkpoint(tmp_path).files) == 3


@pytest.mark.parametrize("stale", [1, 2])
def test_a_tensor_is_read_from_the_file_that_the_index_lists(tmp_path: Path, stale: int) -> None:
    """A copy in another file may be that of an older run."""
    names = {key: f"model-{n}.safetensors" for n, key in enumerate(STATE, 1)}
    old = {key: torch.zeros_like(tensor) for key, tensor in STATE.items()}
    for n, (key, name) in enumerate(names.items(), 1):
        write(tmp_path / name, {**(old if n == stale else {}), key: STATE[key]})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    check(tmp_path)


def test_a_tensor_of_several_files_must_be_listed(tmp_path: Path) -> None:
    names = {key: f"model-{n}.safetensors" for n, key in enumerate(STATE, 1)}
    for key, name in names.items():
        write(tmp_path / name, {key: STATE[key], "extra": STATE[key][:2] * 2})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    with pytest.raises(DisaError, match=r"extra is in several files.*add it to the index"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {**names, "extra": names["a.weight"]}}))
    assert open_checkpoint(tmp_path).state["extra"].tolist() == [0, 2]


@pytest.mark.parametrize("beside", [True, False])
def test_tensors_inside_of_another_dict_belong_to_no_file_of_an_index(
    tmp_path: Path, beside: bool
) -> None:
    names = {key: f"pytorch_model-{n}.bin" for n, key in enumerate(STATE, 1)}
    for key, name in names.items():
        # Tensors of the second file were read from the first one, at equal places.
        flat = {key: STATE[key]} if beside else {}
        torch.save({"model_ema": {key: STATE[key] + 1 for key in STATE}, **flat}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(DisaError, match="inside of model_ema, but an index lists"):
        open_checkpoint(tmp_path)


def test_deepspeed(tmp_path: Path) -> None:
    write(tmp_path / "global_step7" / "mp_rank_00_model_states.pt", STATE)
    (tmp_path / "latest").write_text("global_step7\n")
    check(tmp_path)
    (tmp_path / "latest").write_text("../other")
    with pytest.raises(DisaError, match="does not contain the name of a folder beside it"):
        open_checkpoint(tmp_path)


def test_deepspeed_of_stage_3(tmp_path: Path) -> None:
    write(tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt", STATE)
    with pytest.raises(DisaError, match=r"zero_to_fp32\.py"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("average", ["ema.safetensors", "model_ema.pth", "unet_ema"])
def test_an_average_beside_the_weights(tmp_path: Path, average: str) -> None:
    write(tmp_path / "model.safetensors", STATE)
    if "." in average:
        write(tmp_path / average, STATE)
    else:
        (tmp_path / average).mkdir()
    with pytest.raises(DisaError, match=rf"averaged weights \({average}\)"):
        open_checkpoint(tmp_path)


def test_two_files_that_may_have_different_weights(tmp_path: Path) -> None:
    for name in ("model.safetensors", "checkpoint-last.pth"):
        (tmp_path / name).touch()
    with pytest.raises(DisaError, match=r"both model\.safetensors and checkpoint-last\.pth"):
        weights_in_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert weights_in_folder(tmp_path).name == "checkpoint-last.pth"


def test_what_accelerate_registered_may_be_an_average(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", STATE)
    (tmp_path / "random_states_0.pkl").write_bytes(b"x")
    check(tmp_path)
    (tmp_path / "custom_checkpoint_0.pkl").write_bytes(b"x")
    with pytest.raises(DisaError, match=r"custom_checkpoint_0\.pkl .*perhaps averaged weights"):
        open_checkpoint(tmp_path)
