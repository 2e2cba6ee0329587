import argparse
import collections
import datetime
import errno
import fractions
import functools
import hashlib
import io
import os
import pathlib
import pickle
import pickletools
import random
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from disa.errors import DisaError
from disa.exporter.checkpoints import torch_file
from disa.exporter.checkpoints.checkpoint import open_checkpoint

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


def test_weights_are_mapped_rather_than_read(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", weights())
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
    assert "lists a member twice" in refusal(path)


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
    assert "refused, and nothing in it was executed" in message
    assert "posix.system, which can run programs" in message
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_in_a_plain_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "c.pth"
    path.write_bytes(pickle.dumps(RunsCommand(f"touch {marker}"), protocol))
    assert "posix.system, which can run programs" in refusal(path)
    assert not marker.exists()


def test_unknown_objects_beside_weights_are_passed_over(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "c.pth", weights() | {"extra": Custom()}))
    assert checkpoint.state.keys() == weights().keys()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    message = refusal(save(tmp_path / "c.pth", torch.nn.Linear(2, 2)))
    assert "torch.nn.modules.linear.Linear" in message
    assert "torch.save(model.state_dict())" in message


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(tmp_path: Path, legacy: bool, protocol: int) -> None:
    path = save(tmp_path / "c.pth", {"model": weights(), "epoch": 3}, legacy, protocol)
    opened = open_checkpoint(path).state
    assert all(torch.equal(opened[key], tensor) for key, tensor in weights().items())


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_quantised_tensors(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    assert "it has quantised tensors" in refusal(save(tmp_path / "c.pth", {"a": quantised}))


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
        assert "claims 2130706432 elements but the file has fewer" in refusal(path)


@pytest.mark.parametrize(
    "key",
    [
        b")" + b"\x85" * 500_000,
        b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(40)),
    ],
    ids=["deep", "doubling"],
)
def test_keys_that_are_costly_to_hash_are_not_hashed(tmp_path: Path, key: bytes) -> None:
    path = save(tmp_path / "c.pth", weights())
    rewrite(path, lambda _: b"\x80\x02}" + key + b"K\1s.")
    assert path.stat().st_size < 600_000
    assert "has no tensors, only a tuple" in refusal(path)


def test_a_flipped_bit_is_found_when_the_file_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "c.pth", {"a": torch.arange(1000.0), "b": torch.ones(3)})
    sound = path.read_bytes()
    assert open_checkpoint(path).sha256() == hashlib.sha256(sound).hexdigest()
    data = bytearray(sound)
    data[sound.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 4
    path.write_bytes(data)
    with pytest.raises(DisaError, match=r"checksum of its member c/data/0 does not match"):
        open_checkpoint(path).sha256()


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "c.pth", weights())
    finally:
        torch.serialization.set_crc32_options(True)
    assert open_checkpoint(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def harmless_objects() -> dict[str, Any]:
    table = collections.defaultdict(dict)
    table["a"] = {1: 2}
    return {
        "arrays": {"betas": np.array([0.9, 0.95]), "structured": np.zeros(2, "i4,f4")},
        "random": [np.random.get_state(), random.getstate(), torch.get_rng_state()],
        "generator": np.random.default_rng(3),
        "defaultdict": table,
        "dates": [datetime.datetime(2024, 1, 31), datetime.timedelta(3), datetime.UTC],
        "path": pathlib.Path("a/b"),
        "callbacks": {"Stopping": Custom(), Custom: 1, ("a", 1): 2, None: 3},
        "partial": functools.partial(max, 3),
        "sets": [{1, 2}, frozenset("ab"), slice(1, 2), 1j, bytearray(b"x"), b"x"],
        "exception": ValueError("x"),
        "device": torch.device("cuda:3"),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "fraction": fractions.Fraction(1, 3),
        "uuid": uuid.UUID(int=3),
        "enum": zipfile.Path,
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", harmless_objects())
def test_harmless_objects_beside_weights(
    tmp_path: Path, legacy: bool, protocol: int, name: str
) -> None:
    extra = harmless_objects()[name]
    document = {"model": weights(), name: extra, "args": argparse.Namespace(lr=1.5, extra=extra)}
    checkpoint = open_checkpoint(save(tmp_path / "c.pth", document, legacy, protocol))
    assert checkpoint.weights == "model"
    assert checkpoint.args["lr"] == 1.5
    assert all(torch.equal(checkpoint.state[key], value) for key, value in weights().items())


@FUZZ
@given(noise=st.binary(max_size=60))
def test_random_pickle_in_a_valid_zip(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "c.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c/data.pkl", b"\x80\2" + noise)
        archive.writestr("c/version", "3\n")
    refusal(path)


class FailingDisk(io.FileIO):
    """A file of which only the first bytes can be read."""

    def readinto(self, buffer: Any) -> int | None:
        if self.tell() >= io.DEFAULT_BUFFER_SIZE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer)

    def readall(self) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failing_disk_is_not_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "large.pth", {"a.weight": torch.zeros(1 << 20)})

    def fail(file: Any, mode: str = "r", *_: Any, **__: Any) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(FailingDisk(file))

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", fail)
        with pytest.raises(DisaError, match="it cannot be read: Input/output error"):
            open_checkpoint(path)
    open_checkpoint(path)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EIO, "it cannot be read: Input/output error"),
        (errno.ENOENT, "it cannot be read: No such file or directory"),
        (errno.EACCES, "it cannot be read: Permission denied"),
        (errno.EINVAL, "it is damaged"),
    ],
)
def test_errors_of_the_system_while_the_directory_is_read(
    number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "weights.pth", weights())

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(torch_file, "_members", fail)
    with pytest.raises(DisaError, match=message):
        open_checkpoint(path)


@pytest.mark.parametrize(("pattern", "kept"), [({"blocks.0": 4}, True), ({}, None)])
def test_alphas_of_single_layers_are_not_overlooked(
    tmp_path: Path, pattern: dict[str, int], kept: bool | None
) -> None:
    args = {"lora_alpha": 8, "alpha_pattern": pattern}
    checkpoint = open_checkpoint(save(tmp_path / "c.pth", {"model": weights(), "args": args}))
    assert checkpoint.args["lora_alpha"] == 8
    assert checkpoint.args.get("alpha_pattern") is kept


def test_options_that_contain_themselves(tmp_path: Path) -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    document = {"model": weights(), "args": {"sizes": [1, 2], "odd": endless}}
    assert open_checkpoint(save(tmp_path / "m.pth", document)).args == {"sizes": [1, 2]}


def test_keys_of_storages_that_are_no_texts(tmp_path: Path) -> None:
    path = save(tmp_path / "m.pt", weights(), legacy=True)
    data, stream = path.read_bytes(), io.BytesIO(path.read_bytes())
    for _ in range(4):
        list(pickletools.genops(stream))
    start, keys = stream.tell(), pickle.load(stream)
    numbers = pickle.dumps([int(key) for key in keys], 2)
    path.write_bytes(data[:start] + numbers + data[stream.tell() :])
    assert "list of storages is damaged" in refusal(path)
