import argparse
import contextlib
import gzip
import hashlib
import io
import pickle
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.exporter.checkpoints.checkpoint import load_config, open_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -2.0])}


def training_checkpoint() -> dict[str, Any]:
    averaged = {name: torch.nn.Parameter(tensor + 1) for name, tensor in weights().items()}
    return {
        "model": OrderedDict(weights()),
        "model_ema": OrderedDict(averaged),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(1000)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 7,
        "scaler": {},
        "args": argparse.Namespace(
            model="mar_base", img_size=256, lr=None, betas=[0.9, 0.95], extra={"a": 1}, deep=[[1]]
        ),
    }


def save(path: Path, document: Any, legacy: bool = False, protocol: int = 2) -> Path:
    torch.save(document, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return path


def refusal(path: Path) -> str:
    """The sentence with which the file is refused."""
    with pytest.raises(DisaError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize(
    ("file", "layout", "key"),
    [
        ("mar/checkpoint.pth", "training checkpoint, model_ema", "diffloss.net.cond_embed.weight"),
        ("flowar_s/checkpoint.pth", "state dict", "z_proj.weight"),
        ("xar/checkpoint.pth", "state dict", "class_emb.weight"),
        ("harmon/checkpoint.pth", "state dict", "mar.mask_token"),
        ("vae/kl16_tiny.ckpt", "state dict, model", "decoder.conv_in.weight"),
    ],
)
def test_official_files_open(file: str, layout: str, key: str) -> None:
    checkpoint = open_checkpoint(GOLDEN / file)
    assert checkpoint.layout == layout
    assert key in checkpoint.state
    assert checkpoint.sha256() == hashlib.sha256((GOLDEN / file).read_bytes()).hexdigest()


def test_averaged_weights_are_chosen() -> None:
    with torch.serialization.safe_globals([argparse.Namespace]):
        document = torch.load(GOLDEN / "mar/checkpoint.pth", weights_only=True)
    state = open_checkpoint(GOLDEN / "mar/checkpoint.pth").state
    assert all(torch.equal(state[key], tensor) for key, tensor in document["model_ema"].items())
    assert not torch.equal(state["z_proj.weight"], document["model"]["z_proj.weight"])


def test_options_of_the_training_run_are_read() -> None:
    args = open_checkpoint(GOLDEN / "mar/checkpoint.pth").args
    assert args["img_size"] == 128
    assert args["cfg_schedule"] == "linear"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_training_checkpoint(tmp_path: Path, legacy: bool) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "c.pth", training_checkpoint(), legacy))
    assert checkpoint.layout == "training checkpoint, model_ema"
    assert torch.equal(checkpoint.state["a.bias"], torch.tensor([2.0, -1.0]))
    assert not any(tensor.requires_grad for tensor in checkpoint.state.values())
    assert checkpoint.args == {
        "model": "mar_base",
        "img_size": 256,
        "lr": None,
        "betas": [0.9, 0.95],
    }


@pytest.mark.parametrize("averaged", [None, {}], ids=["none", "empty"])
def test_training_checkpoint_without_averaged_weights(tmp_path: Path, averaged: Any) -> None:
    document = training_checkpoint() | {"model_ema": averaged}
    checkpoint = open_checkpoint(save(tmp_path / "c.pth", document))
    assert checkpoint.layout == "training checkpoint, model"
    assert torch.equal(checkpoint.state["a.bias"], torch.tensor([1.0, -2.0]))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrapper_prefixes_are_stripped(tmp_path: Path, prefix: str) -> None:
    wrapped = {prefix + key: tensor for key, tensor in weights().items()}
    assert open_checkpoint(save(tmp_path / "c.pth", wrapped)).state.keys() == weights().keys()


def test_a_module_named_module_keeps_its_name(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2), "head.weight": torch.ones(2)}
    assert open_checkpoint(save(tmp_path / "c.pth", state)).state.keys() == state.keys()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_dtypes_and_views(tmp_path: Path, dtype: torch.dtype, legacy: bool) -> None:
    whole = torch.arange(12.0).to(dtype)
    state = {"whole": whole, "part": whole[3:9].reshape(2, 3).T, "none": torch.zeros(0, 3)}
    opened = open_checkpoint(save(tmp_path / "c.pth", state, legacy)).state
    for key, tensor in state.items():
        assert opened[key].dtype == tensor.dtype
        assert torch.equal(opened[key], tensor)


def test_missing_file(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "no.pth")


def test_folder_without_weights(tmp_path: Path) -> None:
    assert "it is a folder" in refusal(tmp_path)


def test_unreadable_names(tmp_path: Path) -> None:
    assert "it cannot be read" in refusal(tmp_path / ("x" * 300))
    assert "not a regular file" in refusal(Path("/dev/null"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"PK\3\4", "truncated"),
        (b"hello, I am a readme\n" * 40, "a text file, not a checkpoint"),
        ("Größe: 3\n".encode(), "a text file, not a checkpoint"),
        (bytes(range(256)) * 4, "it is not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (gzip.compress(b"x" * 999, mtime=0), "compressed with gzip"),
        (pickle.dumps({"a": [1.0, 2.0]}), "a plain pickle"),
        (pickle.dumps({"a": [1.0, 2.0]}, 0), "a plain pickle"),
        (b"\xff" * 7 + b"\x7f{" + b" " * 99, "it is not a checkpoint"),
    ],
)
def test_files_that_are_something_else(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    assert sentence in refusal(path)


def test_tar(tmp_path: Path) -> None:
    save(tmp_path / "inner.pth", weights())
    with tarfile.open(tmp_path / "c.pth", "w") as archive:
        archive.add(tmp_path / "inner.pth", "inner.pth")
    assert "it is a tar archive" in refusal(tmp_path / "c.pth")


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"epoch": 3, "lr": 0.1}, "no tensors, only epoch, lr"),
        ({}, "no tensors, only nothing"),
        ({"model": {"name": "mar"}}, "no tensors, only name"),
        ([torch.ones(2)], "it has a list"),
        (torch.ones(2), "it has a single tensor"),
        (3, "it has a int"),
        ({3: torch.ones(2)}, "the name of a tensor is 3"),
        ({"a": torch.ones(1).expand(10**12)}, "claims 1000000000000 elements"),
        ({"a": torch.empty(10**12, device="meta")}, "_rebuild_meta_tensor"),
        ({"a": torch.eye(3).to_sparse()}, "_rebuild_sparse_tensor"),
    ],
)
def test_documents_that_are_not_weights(tmp_path: Path, document: Any, sentence: str) -> None:
    assert sentence in refusal(save(tmp_path / "c.pth", document))


def contents(kind: str) -> bytes:
    if kind == "safetensors":
        return safetensors.torch.save(weights())
    buffer = io.BytesIO()
    torch.save(training_checkpoint(), buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


CONTENTS = {kind: contents(kind) for kind in ("zip", "legacy", "safetensors")}
kinds = st.sampled_from(sorted(CONTENTS))


@FUZZ
@given(kind=kinds, data=st.data())
def test_truncated_anywhere(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = CONTENTS[kind]
    path = tmp_path / "c.pth"
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refusal(path)


@FUZZ
@given(kind=kinds, data=st.data())
def test_changed_anywhere(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    content = bytearray(CONTENTS[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "c.pth"
    path.write_bytes(content)
    with contextlib.suppress(DisaError):
        assert open_checkpoint(path).state


@FUZZ
@given(noise=st.binary(max_size=300), head=st.sampled_from([b"", b"\x80\2", b"PK\3\4", b"\x80\4"]))
def test_random_bytes(tmp_path: Path, noise: bytes, head: bytes) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(head + noise)
    refusal(path)


def test_config(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    path.write_text('\ufeff{"encoder_depth": 2, "llm": {"rope_theta": 1e6, "tie": true}}')
    assert load_config(path) == {"encoder_depth": 2, "llm": {"rope_theta": 1e6, "tie": True}}
    assert load_config(GOLDEN / "mar/architecture.json")["encoder_num_heads"] == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "line 1 is not valid JSON"),
        (b'{\n"a" 1\n}', "line 2 is not valid JSON"),
        (b"[1, 2]", "must be a JSON object"),
        (b"3", "not a number"),
        (b"null", "not null"),
        (b'{"encoder_depth": -2}', "encoder_depth is -2"),
        (b'{"llm": {"heads": [4, -1.5]}}', "llm.heads is -1.5"),
        (b'{"a": NaN}', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON text"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * (2 << 20), "larger than 1 MiB"),
    ],
)
def test_bad_config(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "architecture.json"
    path.write_bytes(content)
    with pytest.raises(DisaError) as caught:
        load_config(path)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="No such file"):
        load_config(tmp_path / "no.json")
