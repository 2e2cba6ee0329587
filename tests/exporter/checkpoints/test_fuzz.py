"""Damaged checkpoints, configurations and tokenizers give a sentence, or are read."""

import io
import json
from argparse import Namespace
from pathlib import Path

import safetensors.torch
import torch

from disa.exporter.checkpoints.checkpoint import load_config, open_checkpoint
from disa.exporter.checkpoints.pickle_values import PickleError
from disa.exporter.checkpoints.pickles import read_pickle
from disa.exporter.checkpoints.tokenizer import read_tokenizer
from disa.exporter.families.configs import flowar, harmon, mar, xar
from disa.exporter.vae.latents import split_latent_scale

from ...fuzzing import check_reader
from ...tiny_tokenizer import write_vocabulary

GOLDEN = Path(__file__).parents[2] / "golden"


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1.0, -2.0])}


def saved(zipped: bool, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    document = {
        "model": weights(),
        "ema": {key: tensor + 1 for key, tensor in weights().items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "lr": [1e-4, (1, None)]},
        "args": Namespace(lr=0.1, betas=[0.9, 0.95], path=Path("a/b")),
    }
    torch.save(document, buffer, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return buffer.getvalue()


def pickled(data: bytes) -> bytes:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return archive.read("archive/data.pkl")


def test_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    samples = [saved(True), saved(False), saved(True, 4), safetensors.torch.save(weights())]

    def read(data: bytes) -> None:
        # A mapped file must not change under its tensors.
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        checkpoint = open_checkpoint(path)
        checkpoint.sha256()
        assert all(float(tensor.double().sum()) is not None for tensor in checkpoint.state.values())

    assert check_reader(samples, read, "checkpoints") > 0


def test_pickles() -> None:
    samples = [pickled(saved(True, protocol)) for protocol in (2, 4, 5)]
    assert (
        check_reader(samples, lambda data: read_pickle(io.BytesIO(data)), "pickles", PickleError)
        > 0
    )


def test_indexes(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    (tmp_path / "a.safetensors").write_bytes(safetensors.torch.save(weights()))
    sample = json.dumps({"weight_map": dict.fromkeys(weights(), "a.safetensors")}).encode()

    def read(data: bytes) -> None:
        index.write_bytes(data)
        open_checkpoint(index)

    assert check_reader([sample], read, "indexes") > 0


def test_configurations(tmp_path: Path) -> None:
    path = tmp_path / "architecture.json"
    families = {
        "mar": mar,
        "flowar_s": flowar,
        "xar": xar,
        "harmon": harmon,
    }
    for name, family in families.items():
        state = open_checkpoint(GOLDEN / name / "checkpoint.pth").state
        file = "config.json" if name == "harmon" else "architecture.json"
        content = json.loads((GOLDEN / name / file).read_text())
        content.pop("vae_scale", None)
        sample = json.dumps({**content, "latent_scale": 0.25, "latent_shift": 0.5}).encode()

        def read(data: bytes, state: dict = state, family: object = family) -> None:  # type: ignore[type-arg]
            path.write_bytes(data)
            rest, _ = split_latent_scale(load_config(path))
            family.configure(state, rest, {})  # type: ignore[attr-defined]

        assert check_reader([sample], read, f"configuration of {name}") > 0


def test_tokenizers(tmp_path: Path) -> None:
    folder = write_vocabulary(tmp_path / "whole")
    names = ("vocab.json", "merges.txt", "tokenizer.json")
    (folder / "tokenizer.json").write_bytes(read_tokenizer(folder, 200))
    contents = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        needed = ("tokenizer.json",) if name == "tokenizer.json" else names[:2]
        for each in needed:
            (other / each).write_bytes(contents[each])

        def read(data: bytes, file: Path = other / name) -> None:
            file.write_bytes(data)
            read_tokenizer(file.parent, 200)

        assert check_reader([contents[name]], read, name) > 0
