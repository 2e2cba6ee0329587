import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.exporter.checkpoint import load_config, open_checkpoint

GOLDEN = Path(__file__).parents[1] / "golden"
FUZZ = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class RunsCommand:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Custom:
    """Pickles to a global that no machine of a user has."""


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
        "args": argparse.Namespace(model="mar_base", img_size=256, lr=None, betas=[0.9, 0.95]),
    }


def save(path: Path, document: Any, legacy: bool = False, protocol: int = 2) -> Path:
    torch.save(document, path, _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    return path


def rewrite(
    path: Path, edit: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    """The same zip with another pickle."""
    with zipfile.ZipFile(path) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, edit(data) if name.endswith("data.pkl") else data)
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
    assert checkpoint.args == {"model": "mar_base", "img_size": 256, "lr": None}


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


def test_weights_are_mapped_rather_than_read(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", training_checkpoint())
    checkpoint = open_checkpoint(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert checkpoint.state


def test_tensors_of_a_gpu_come_to_the_cpu(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", weights())
    rewrite(path, lambda data: data.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:3"))
    state = open_checkpoint(path).state
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    assert torch.equal(state["a.weight"], weights()["a.weight"])


@pytest.mark.parametrize("order", ["<", ">"])
def test_numpy_scalars_and_paths_in_the_options(tmp_path: Path, order: str) -> None:
    args = argparse.Namespace(
        lr=np.float64(0.25), ratio=np.float32(0.5), epochs=np.int64(-3), flag=np.bool_(True),
        swapped=np.dtype(f"{order}i4").type(5), output_dir=pathlib.PurePosixPath("out/run"),
    )  # fmt: skip
    checkpoint = open_checkpoint(save(tmp_path / "c.pth", {"model": weights(), "args": args}))
    assert checkpoint.args == {
        "lr": 0.25, "ratio": 0.5, "epochs": -3, "flag": True, "swapped": 5, "output_dir": "out/run",
    }  # fmt: skip


def test_safetensors(tmp_path: Path) -> None:
    for name in ("model.safetensors", "weights.bin"):
        safetensors.torch.save_file(weights(), tmp_path / name)
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.layout == "safetensors"
        assert torch.equal(checkpoint.state["a.weight"], weights()["a.weight"])
    assert open_checkpoint(tmp_path).state.keys() == weights().keys()


def shard(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    for number, (key, tensor) in enumerate(weights().items()):
        safetensors.torch.save_file({key: tensor}, folder / f"model-{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    default = {"a.weight": "model-0.safetensors", "a.bias": "model-1.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map or default}))
    return index


def test_sharded_safetensors(tmp_path: Path) -> None:
    index = shard(tmp_path)
    for path in (tmp_path, index):
        checkpoint = open_checkpoint(path)
        assert checkpoint.layout == "safetensors, 2 files"
        assert torch.equal(checkpoint.state["a.bias"], weights()["a.bias"])
    before = checkpoint.sha256()
    safetensors.torch.save_file({"a.bias": torch.zeros(2)}, tmp_path / "model-1.safetensors")
    assert open_checkpoint(index).sha256() != before


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        ({"a.weight": "../model-0.safetensors"}, "only files beside it are opened"),
        ({"a.weight": "/etc/passwd"}, "only files beside it are opened"),
        ({"a.weight": 3}, "only files beside it are opened"),
        ({"a.weight": "model-9.safetensors"}, "lists model-9.safetensors, which is not beside it"),
        ({"b.weight": "model-0.safetensors"}, "1 of its tensors are in none of its files"),
        ([1], "has no weight_map"),
    ],
)
def test_bad_index(tmp_path: Path, weight_map: Any, sentence: str) -> None:
    assert sentence in refusal(shard(tmp_path, weight_map))


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
        (gzip.compress(b"x" * 999), "compressed with gzip"),
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


def test_zip_without_a_checkpoint(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.ones(3))
    assert "a zip file without the data.pkl" in refusal(tmp_path / "c.npz")


def test_torchscript(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", weights())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("c/constants.pkl", b"\x80\2).")
    assert "TorchScript" in refusal(path)


def test_compressed_members_are_refused_unread(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", weights())
    rewrite(path, lambda data: data, zipfile.ZIP_DEFLATED)
    assert "is compressed" in refusal(path)
    bomb = save(tmp_path / "bomb.pth", weights())
    rewrite(bomb, lambda data: data + b"\0" * (40 << 20), zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    assert "is compressed" in refusal(bomb)


def test_oversized_pickle(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", weights())
    rewrite(path, lambda data: data + b"\0" * (17 << 20))
    assert "its pickle has 17 MiB" in refusal(path)


def test_duplicate_members(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", weights())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("c/data.pkl", b"N.")
    assert "names one member twice" in refusal(path)


def hostile_documents(command: str) -> dict[str, Any]:
    return {
        "weights": weights() | {"x": RunsCommand(command)},
        "args": {"model": weights(), "args": argparse.Namespace(x=RunsCommand(command))},
        "alone": RunsCommand(command),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["weights", "args", "alone"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, legacy: bool, place: str, protocol: int
) -> None:
    marker = tmp_path / "was-run"
    document = hostile_documents(f"touch {marker}")[place]
    message = refusal(save(tmp_path / "c.pth", document, legacy, protocol))
    assert "refused, and nothing in it was run" in message
    assert "posix.system, which can run programs" in message
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "c.pth"
    path.write_bytes(pickle.dumps(RunsCommand(f"touch {marker}"), protocol))
    assert "posix.system, which can run programs" in refusal(path)
    assert not marker.exists()


def test_unknown_objects_are_named(tmp_path: Path) -> None:
    message = refusal(save(tmp_path / "c.pth", weights() | {"extra": Custom()}))
    assert f"{Custom.__module__}.Custom, which plain weights do not need" in message


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    message = refusal(save(tmp_path / "c.pth", torch.nn.Linear(2, 2)))
    assert "torch.nn.modules.linear.Linear" in message
    assert "torch.save(model.state_dict())" in message


def test_later_pickle_protocols_are_named(tmp_path: Path) -> None:
    message = refusal(save(tmp_path / "c.pth", weights(), protocol=4))
    assert "pickle protocol 4" in message


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"epoch": 3, "lr": 0.1}, "no tensors, only epoch, lr"),
        ({}, "no tensors, only nothing"),
        ({"model": {"name": "mar"}}, "no tensors, only name"),
        ([torch.ones(2)], "it holds a list"),
        (torch.ones(2), "it holds a single tensor"),
        (3, "it holds a int"),
        ({3: torch.ones(2)}, "the name of a tensor is 3"),
        ({"a": torch.ones(1).expand(10**12)}, "claims 1000000000000 elements"),
        ({"a": torch.empty(10**12, device="meta")}, "_rebuild_meta_tensor"),
        ({"a": torch.eye(3).to_sparse()}, "_rebuild_sparse_tensor"),
    ],
)
def test_documents_that_are_not_weights(tmp_path: Path, document: Any, sentence: str) -> None:
    assert sentence in refusal(save(tmp_path / "c.pth", document))


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_quantised_tensors(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    assert "it holds quantised tensors" in refusal(save(tmp_path / "c.pth", {"a": quantised}))


def test_storage_sizes_must_be_those_of_the_file(tmp_path: Path) -> None:
    state = {"a": torch.ones(1000)}
    huge = pickle.dumps(10**14, 2)[2:-1]
    for legacy in (False, True):
        path = save(tmp_path / f"{legacy}.pth", state, legacy)
        edit = lambda data: data.replace(b"M\xe8\x03", huge)  # noqa: E731
        if legacy:
            path.write_bytes(edit(path.read_bytes()))
        else:
            rewrite(path, edit)
        assert "declare" in refusal(path)


def test_tensors_larger_than_their_storage(tmp_path: Path) -> None:
    """The size of the tensor itself lies, not that of its storage."""
    for legacy in (False, True):
        path = save(tmp_path / f"{legacy}.pth", {"a": torch.ones(1000)}, legacy)
        edit = lambda data: data.replace(b"M\xe8\x03\x85", b"J\0\0\0\x7f\x85")  # noqa: E731
        if legacy:
            path.write_bytes(edit(path.read_bytes()))
        else:
            rewrite(path, edit)
        assert "PyTorch cannot open it" in refusal(path)


def test_deeply_nested_tuples_are_refused(tmp_path: Path) -> None:
    """Hashing such a tuple would overflow the interpreter's stack."""
    path = save(tmp_path / "c.pth", weights())
    rewrite(path, lambda _: b"\x80\x02})" + b"\x85" * 500_000 + b"K\1s.")
    assert "nests tuples too deeply" in refusal(path)


def test_safetensors_with_a_broken_header(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    good = safetensors.torch.save(weights())
    length = int.from_bytes(good[:8], "little")
    lying = json.loads(good[8 : 8 + length])
    lying["a.weight"]["shape"] = [2**40, 2**40]
    header = json.dumps(lying).encode()
    for content in (
        good[:-1],
        b"\xff" * 8 + good[8:],
        good[:8] + b"[" + good[9:],
        struct.pack("<Q", len(header)) + header + good[8 + length :],
        b"hello",
    ):
        path.write_bytes(content)
        assert "not a valid safetensors file" in refusal(path)


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


@FUZZ
@given(noise=st.binary(max_size=60))
def test_random_pickle_in_a_valid_zip(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c/data.pkl", b"\x80\2" + noise)
        archive.writestr("c/version", "3\n")
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
        (b"[1, 2]", "must hold a JSON object"),
        (b"3", "not a number"),
        (b"null", "not null"),
        (b'{"encoder_depth": -2}', "encoder_depth is -2"),
        (b'{"llm": {"heads": [4, -1.5]}}', "llm.heads is -1.5"),
        (b'{"a": NaN}', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b" " * (2 << 20), "too large"),
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
